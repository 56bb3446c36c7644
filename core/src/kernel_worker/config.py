"""The frozen configuration: every setting, its value and who set it.

Sources, the first that speaks wins: command line, environment, file (`kw.toml`, or `[tool.kw]` in
`pyproject.toml`), application, default. The application is the last to be known: it reports its settings
when the first executor is up, and `Config.with_settings` fills what nobody else has set.

Sections are options dataclasses (see `options`): the kernel's own is `worker`, each plugin and the pool bring
theirs. Secrets are wrapped in `Secret` and masked wherever they are printed.
"""

from __future__ import annotations

import functools
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ConfigError, KernelWorkerError, UsageError
from .options import OptionSpec, boolean, integer, number, option_fields, text, word_list
from .secret import Secret, mask_url
from .worker_options import WorkerOptions, cpus_available, expand_node_name

if typing.TYPE_CHECKING:
    from .config_file import SettingsFile

__all__ = [
    "WORKER",
    "Config",
    "Draft",
    "Secret",
    "WorkerOptions",
    "compose",
    "cpus_available",
    "expand_node_name",
    "mask_url",
    "worker_settings",
]

WORKER = "worker"
"""Name of the kernel's own section."""

DEFAULT, APPLICATION, COMMAND_LINE = "default", "application", "command line"
ENVIRONMENT_ONLY = {"KW_CONFIG", "KW_TRACEBACK"}
"""Variables that are no setting."""

Key = tuple[str, str]
"""Section and field."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, ready to use, and the source it came from."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Field:
    """One declared setting: its place, its kind and its spec."""

    section: str
    name: str
    spec: OptionSpec
    parse: Callable[[Any], Any]
    default: Any

    @property
    def env(self) -> str:
        """The environment variable that sets this field."""
        place = self.name if self.section == WORKER else f"{self.section}_{self.name}"
        return self.spec.env or "KW_" + place.upper().replace("-", "_").replace(".", "_")

    def read(self, value: Any, source: str, place: str = "") -> Setting:
        """Turn what a source holds into a setting.

        :param place: the source in more detail, for the error text.
        :raises UsageError: the value came from the command line and is impossible.
        :raises ConfigError: it came from elsewhere.
        """
        try:
            parsed = self.parse(value)
            if self.spec.choices and parsed not in self.spec.choices:
                raise ValueError(f"{value!r} is not one of {', '.join(self.spec.choices)}")
        except (ValueError, TypeError) as error:
            reason = str(error)
            if self.spec.secret:  # the parser's words may quote the value
                reason = "its value cannot be used"
            kind: type[KernelWorkerError] = UsageError if source == COMMAND_LINE else ConfigError
            raise kind(f"{self.section}.{self.name}: {reason} ({place or source})") from None
        return Setting(Secret(parsed) if self.spec.secret and isinstance(parsed, str) else parsed, source)


@functools.cache
def fields_of(section: str, options: type) -> dict[str, Field]:
    """The settings that a section's dataclass declares, by name.

    :raises ConfigError: an annotation of the dataclass says nothing about how to read a value.
    """
    hints = typing.get_type_hints(options)
    found = {}
    for item, spec in option_fields(options):
        parse = spec.parse or _parser_for(hints[item.name])
        if parse is None:
            raise ConfigError(
                f"{section}.{item.name}: no value can be read for the annotation {item.type}",
                hint="the options class needs option(..., parse=...) here",
            )
        found[item.name] = Field(section, item.name, spec, parse, item.default)
    return found


_PARSERS: dict[Any, Callable[[Any], Any]] = {str: text, bool: boolean, int: integer, float: number, Secret: text}


def _parser_for(hint: Any) -> Callable[[Any], Any] | None:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return _parser_for(kinds[0]) if len(kinds) == 1 else None
    if typing.get_origin(hint) is tuple and typing.get_args(hint) == (str, ...):
        return word_list
    return _PARSERS.get(hint)


class Draft:
    """The configuration while it is still being put together: what `kw_configure` hooks see and change."""

    def __init__(self, sections: Mapping[str, type], settings: Mapping[Key, Setting]) -> None:
        self._sections = dict(sections)
        self._fields = {name: fields_of(name, options) for name, options in sections.items()}
        self._settings = dict(settings)

    def get(self, section: str, name: str) -> Any:
        """The value a field has so far.

        :raises ConfigError: there is no such section or field.
        """
        found = self._settings.get((section, name))
        declared = self._declared(section, name)
        return found.value if found else _as_declared(declared)

    def source(self, section: str, name: str) -> str:
        """Who has set a field so far; see `Config.source`."""
        self._declared(section, name)
        found = self._settings.get((section, name))
        return found.source if found else DEFAULT

    def set(self, section: str, name: str, value: Any, source: str = "plugin") -> None:
        """Give a field a value; it wins over all other sources.

        :raises ConfigError: no such field, or an impossible value.
        """
        declared = self._declared(section, name)
        usable = value is None or isinstance(value, Secret)
        self._settings[section, name] = Setting(value, source) if usable else declared.read(value, source)

    def fill(self, settings: Mapping[str, Any]) -> None:
        """Take the application's settings (Celery's names) for the fields that nobody has set.

        Names that no field declares are not the kernel's business; None means unset.

        :raises ConfigError: names the setting and its value.
        """
        for fields in self._fields.values():
            for declared in fields.values():
                name = declared.spec.celery
                key = (declared.section, declared.name)
                if name and key not in self._settings and settings.get(name) is not None:
                    self._settings[key] = declared.read(settings[name], APPLICATION, f"application setting {name}")

    def freeze(self) -> Config:
        """Check each section as a whole and make the configuration final.

        :raises ConfigError: the values of a section do not go together.
        """
        settings, instances = {}, {}
        for section, options in self._sections.items():
            for name, declared in self._fields[section].items():
                found = self._settings.get((section, name))
                settings[section, name] = found or Setting(_as_declared(declared), DEFAULT)
            try:
                instances[section] = options(**{name: settings[section, name].value for name in self._fields[section]})
            except ValueError as error:
                raise ConfigError(f"{section}: {error}") from None
        return Config(instances, settings, dict(self._sections))

    def _declared(self, section: str, name: str) -> Field:
        if section not in self._fields:
            raise ConfigError(_unknown("section", section, self._fields))
        if name not in self._fields[section]:
            raise ConfigError(_unknown("setting", name, self._fields[section], inside=section))
        return self._fields[section][name]


def _as_declared(declared: Field) -> Any:
    value = declared.default
    return Secret(value) if declared.spec.secret and isinstance(value, str) else value


@dataclass(frozen=True, slots=True, repr=False)
class Config:
    """All settings of a worker, final. Safe to share between threads and to print."""

    _instances: Mapping[str, Any]
    _settings: Mapping[Key, Setting] = field(default_factory=dict)
    _sections: Mapping[str, type] = field(default_factory=dict)

    @property
    def worker(self) -> WorkerOptions:
        """The kernel's own section."""
        found = self._instances[WORKER]
        assert isinstance(found, WorkerOptions)
        return found

    def section(self, name: str) -> Any:
        """The options of a plugin or pool: an instance of the class it declared.

        :raises ConfigError: no selected plugin of that name has options.
        """
        try:
            return self._instances[name]
        except KeyError:
            raise ConfigError(_unknown("section", name, self._instances)) from None

    def __contains__(self, section: object) -> bool:
        return section in self._instances

    def explicit(self, section: str, name: str) -> bool:
        """Whether anyone, the application included, has set this field."""
        return self.source(section, name) != DEFAULT

    def source(self, section: str, name: str) -> str:
        """Who set a field: "command line", "environment KW_…", the file's name, "application", "default",
        or "plugin" when a `kw_configure` hook did.

        :raises ConfigError: there is no such field.
        """
        try:
            return self._settings[section, name].source
        except KeyError:
            raise ConfigError(_unknown("setting", f"{section}.{name}", _dotted(self._settings))) from None

    def with_settings(self, settings: Mapping[str, Any], configure: Callable[[Draft], object] | None = None) -> Config:
        """A configuration with the application's settings where nobody else has set the field.

        :param settings: Celery's lowercase names; names the kernel does not declare are ignored.
        :param configure: run on the draft before it is frozen; pass `hooks.kw_configure`, so that plugins
            check what the application has set.
        :raises ConfigError: names the setting and its value.
        """
        set_by_someone = {key: setting for key, setting in self._settings.items() if setting.source != DEFAULT}
        draft = Draft(self._sections, set_by_someone)
        draft.fill(settings)
        if configure is not None:
            configure(draft)
        return draft.freeze()

    def describe(self) -> list[tuple[str, str, str, str]]:
        """Rows of section, field, value and source, fit to be printed: secrets are masked."""
        return [
            (section, name, _shown(setting.value), setting.source)
            for (section, name), setting in self._settings.items()
        ]

    def __repr__(self) -> str:
        changed = (f"{s}.{n}={v}" for s, n, v, source in self.describe() if source != DEFAULT)
        return f"Config({', '.join(changed)})"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else "" if value is None else str(value)


def compose(
    sections: Mapping[str, type],
    *,
    command_line: Mapping[Key, Any] = types.MappingProxyType({}),
    environ: Mapping[str, str] | None = None,
    file: SettingsFile | None = None,
    installed: Collection[str] | None = (),
) -> Draft:
    """Merge command line, environment and file.

    :param sections: options dataclass per section; `worker` is added.
    :param command_line: what was given there, as text (True for flags), by section and field.
    :param environ: default `os.environ`; empty variables count as unset.
    :param installed: names of plugins that may have a section in the file without being selected; None = any
        section is accepted (before the plugins are known).
    :raises UsageError: an impossible value on the command line.
    :raises ConfigError: an impossible value elsewhere, an unknown section or key in the file.
    """
    declared = {WORKER: WorkerOptions, **sections}
    variables = os.environ if environ is None else environ
    settings: dict[Key, Setting] = {}
    for section, options in declared.items():
        fields = fields_of(section, options)
        from_file = file.section(section, fields) if file else {}
        for name, item in fields.items():
            if (given := command_line.get((section, name))) is not None:
                where = f"{COMMAND_LINE} {item.spec.flags[0]}" if item.spec.flags else COMMAND_LINE
                settings[section, name] = item.read(given, COMMAND_LINE, where)
            elif variables.get(item.env):
                settings[section, name] = item.read(variables[item.env], f"environment {item.env}")
            elif name in from_file and file:
                settings[section, name] = item.read(from_file[name], file.label)
    if file and installed is not None:
        file.check_sections({*declared, *installed})
    return Draft(declared, settings)


def misspelt_variables(config: Config, environ: Mapping[str, str]) -> list[str]:
    """Sentences on variables that look like settings and are none, where one that is comes close. Anything else that
    begins with KW_ may be somebody else's."""
    known = {item.env for name, options in config._sections.items() for item in fields_of(name, options).values()}
    strange = [name for name in sorted(environ) if name.startswith("KW_") and name not in known | ENVIRONMENT_ONLY]
    if not strange:
        return []
    from .nearest import nearest

    near = {name: nearest(name.removeprefix("KW_"), [each.removeprefix("KW_") for each in known]) for name in strange}
    return [
        f"environment {name} is no setting and has no effect: did you mean KW_{meant}?"
        for name, meant in near.items()
        if meant
    ]


def _dotted(settings: Mapping[Key, Setting]) -> list[str]:
    return [f"{section}.{name}" for section, name in settings]


def _unknown(kind: str, name: str, known: Collection[str], inside: str = "") -> str:
    from .nearest import did_you_mean

    place = f" in section {inside}" if inside else ""
    return f"no {kind} named {name!r}{place}{did_you_mean(name, known)}"


def worker_settings() -> Draft:
    """The worker's settings as environment and file have them, for commands that need just one or two, such as
    `worker_settings().get("worker", "broker")`.

    :raises ConfigError: the file is damaged, or a value impossible.
    """
    from .config_file import find_settings_file

    return compose({}, file=find_settings_file(os.environ.get("KW_CONFIG") or None), installed=None)
