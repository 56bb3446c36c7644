"""Two-pass parsing: first what selects plugins, then strictly, with the options of those selected.

Pass 1 reads the kernel's own options and ignores what it does not know; registry and settings file then say which
plugins and which pool there are; pass 2 knows their options too. Values are read by `config`, not by click,
so that every source obeys the same rules and words its errors the same way.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from kernel_worker.config import WORKER, Config, Field, Key, WorkerOptions, compose, fields_of
from kernel_worker.config_file import SettingsFile, find_settings_file
from kernel_worker.errors import KernelWorkerError, PluginError, UsageError
from kernel_worker.hooks import Hooks
from kernel_worker.options import NoOptions
from kernel_worker.registry import Registry, Selection

_META = "kernel_worker.prepared"
_PROBLEM = "kernel_worker.problem"
_CONFIG_OPTION = "config_file"


@dataclass(frozen=True, slots=True)
class Composition:
    """What a command works with."""

    config: Config
    registry: Registry
    selection: Selection
    hooks: Hooks | None = None
    """Of commands that load plugins: `kw run` and its relatives."""
    problem: str = ""
    """Why plugins could not be loaded, for commands that go on without them."""


@dataclass(slots=True)
class Prepared:
    """What pass 1 found out."""

    registry: Registry
    selection: Selection
    file: SettingsFile | None
    sections: dict[str, type] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)  # of sections, for --help
    pool: str = ""
    hooks: Hooks | None = None
    problem: str = ""


class SettingOption(click.Option):
    """The command-line side of one declared setting."""

    def __init__(self, declared: Field) -> None:
        self.declared = declared
        spec = declared.spec
        shape: dict[str, Any] = {"is_flag": True} if spec.is_flag else {"type": click.UNPROCESSED}
        if spec.metavar and not spec.is_flag:
            shape["metavar"] = spec.metavar
        super().__init__([_identifier(declared), *spec.flags], default=None, help=_help(declared), **shape)

    def given(self, parameters: Mapping[str, Any]) -> Any:
        """What the command line says for this setting; None when it says nothing."""
        value = parameters.get(self.name or "")
        return None if value is False else value


def _identifier(declared: Field) -> str:
    return "".join(c if c.isalnum() else "_" for c in f"{declared.section}__{declared.name}").lower()


def _help(declared: Field) -> str:
    default = declared.default
    if default is None or default == () or isinstance(default, bool):
        return declared.spec.help
    return f"{declared.spec.help} [{default:g}]" if isinstance(default, float) else f"{declared.spec.help} [{default}]"


@functools.cache
def _options(section: str, options: type, only: tuple[str, ...] | None = None) -> list[SettingOption]:
    declared = fields_of(section, options).values()
    return [SettingOption(item) for item in declared if item.spec.flags and (only is None or item.name in only)]


class SettingsCommand(click.Command):
    """A command with some of the worker's options; its callback gets a `Composition` (`click.pass_obj`)."""

    only: tuple[str, ...] | None = ("app", "broker", "plugins", "workdir", "queues")
    """Names of the fields of `WorkerOptions` it takes; None = all."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, the worker's, and those of the plugins that pass 1 selected."""
        prepared: Prepared | None = ctx.meta.get(_META)
        options: list[click.Parameter] = [_config_option(), *_options(WORKER, WorkerOptions, self.only)]
        for section, declared in (prepared.sections if prepared else {}).items():
            options += _options(section, declared)
        _refuse_doubles(options)
        *own, help_option = super().get_params(ctx)
        return [*own, *options, help_option]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Both passes; leaves a `Composition` in `ctx.obj`."""
        try:
            prepared = ctx.meta[_META] = self.prepare(args)
        except KernelWorkerError as error:
            if not set(args) & set(ctx.help_option_names):
                raise
            ctx.meta[_PROBLEM] = error.message  # who asks for help may well be mending just this
            prepared = None
        rest = super().parse_args(ctx, args)
        if prepared is None:
            ctx.exit()
        options = [option for option in self.get_params(ctx) if isinstance(option, SettingOption)]
        given = {_key(option): option.given(ctx.params) for option in options}
        for option in options:
            ctx.params.pop(option.name or "", None)
        ctx.params.pop(_CONFIG_OPTION, None)
        ctx.obj = self.compose(prepared, given)
        return rest

    def prepare(self, args: Sequence[str]) -> Prepared:
        """Pass 1. Changes to `--workdir`, so that all that follows looks there.

        :raises KernelWorkerError: a wrong selection or setting.
        """
        lenient = click.Command(
            self.name,
            params=[*self.params, _config_option(), *_options(WORKER, WorkerOptions, self.only)],
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
            add_help_option=False,
        )
        parameters = lenient.make_context(self.name, list(args), resilient_parsing=True).params
        given = {
            _key(option): option.given(parameters) for option in lenient.params if isinstance(option, SettingOption)
        }
        named = parameters.get(_CONFIG_OPTION) or os.environ.get("KW_CONFIG") or None
        named = str(Path(named).absolute()) if named else None
        _enter(given.get((WORKER, "workdir")) or os.environ.get("KW_WORKDIR"))
        file = find_settings_file(named)
        early = compose({}, command_line=given, file=file, installed=None)
        registry = Registry.discover()
        prepared = Prepared(registry, registry.select(early.get(WORKER, "plugins")), file)
        self.load(prepared, early.get(WORKER, "pool"), args)
        return prepared

    def load(self, prepared: Prepared, pool: str | None, args: Sequence[str]) -> None:
        """Import what brings options of its own: nothing here."""

    def compose(self, prepared: Prepared, given: Mapping[Key, Any]) -> Composition:
        """Merge all sources into the frozen configuration."""
        draft = compose(prepared.sections, command_line=given, file=prepared.file, installed=prepared.registry.names)
        if folder := draft.get(WORKER, "workdir"):
            source = draft.source(WORKER, "workdir")
            if prepared.file and source == prepared.file.label:
                _enter(folder)
            draft.set(WORKER, "workdir", os.getcwd(), source)  # entered: a relative one would mean another folder now
        if prepared.pool and draft.get(WORKER, "pool") != prepared.pool:
            draft.set(WORKER, "pool", prepared.pool, "selection")
        if prepared.hooks is not None:
            prepared.hooks.kw_configure(draft)
        return Composition(draft.freeze(), prepared.registry, prepared.selection, prepared.hooks, prepared.problem)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options by section, each plugin's under its name."""
        prepared: Prepared | None = ctx.meta.get(_META)
        titles = prepared.titles if prepared else {}
        rows: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in self.get_params(ctx):
            section = option.declared.section if isinstance(option, SettingOption) else WORKER
            if record := option.get_help_record(ctx):
                rows.setdefault(titles.get(section, "Options"), []).append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The epilog, or why the options of plugins are missing above."""
        super().format_epilog(ctx, formatter)
        if problem := ctx.meta.get(_PROBLEM):
            formatter.write_paragraph()
            formatter.write_text(f"Without the options of plugins: {problem}")


class WorkerCommand(SettingsCommand):
    """A command with all options of the worker, of the selected plugins and of the chosen pool."""

    only: tuple[str, ...] | None = None

    def load(self, prepared: Prepared, pool: str | None, args: Sequence[str]) -> None:
        """Load the selected plugins and the pool's driver, and collect their options.

        :raises UsageError: the selection does not make a worker.
        :raises PluginError: a selected plugin cannot be imported.
        """
        registry, selection = prepared.registry, prepared.selection
        registry.require_runnable(selection)
        prepared.pool = registry.choose_pool(selection, pool)
        driver = registry.load_pool(selection, prepared.pool)
        prepared.hooks = registry.load_plugins(selection)
        sections = prepared.hooks.kw_options()
        prepared.titles = {name: f"Options of {prepared.hooks.owner_of(name)}" for name in sections}
        own: type = getattr(driver, "Options", NoOptions)
        if sections.setdefault(prepared.pool, own) is not own:
            raise PluginError(f"a plugin and the pool {prepared.pool!r} declare different options of one name")
        prepared.titles[prepared.pool] = f"Options of pool {prepared.pool}"
        prepared.sections = sections


def _key(option: SettingOption) -> Key:
    return option.declared.section, option.declared.name


@functools.cache
def _config_option() -> click.Option:
    return click.Option([_CONFIG_OPTION, "--config"], metavar="FILE", help="Settings file [kw.toml, pyproject.toml].")


def _refuse_doubles(options: Iterable[click.Parameter]) -> None:
    owners: dict[str, str] = {"--config": WORKER, "--help": WORKER}
    for option in options:
        if isinstance(option, SettingOption):
            for flag in option.opts:
                other = owners.setdefault(flag, option.declared.section)
                if other != option.declared.section:
                    raise PluginError(f"{option.declared.section} and {other} both have an option {flag}")


def _enter(folder: str | None) -> None:
    if not folder:
        return
    try:
        os.chdir(folder)
    except OSError as error:
        raise UsageError(f"cannot change to the folder {folder}: {error.strerror}") from None
