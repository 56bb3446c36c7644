"""The commands a command line can offer: those that are installed here, or that a worker describes."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from kernel_worker import ControlCommand, Permission

GROUP = "kernel_worker.control"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, slots=True)
class Described:
    """One command, for people.

    :param arguments: name to the name of its type.
    """

    name: str
    is_reading: bool
    arguments: Mapping[str, str] = field(default_factory=dict)
    variadic: str = ""
    help: str = ""

    @classmethod
    def of(cls, command: ControlCommand) -> Described:
        """One that is installed."""
        kinds = {name: kind.__name__ for name, kind in command.arguments.items()}
        return cls(command.name, command.permission is Permission.READ, kinds, command.variadic, command.help)

    @classmethod
    def from_reply(cls, name: str, reply: Mapping[str, Any]) -> Described:
        """One that a worker described; untrusted."""
        given = reply.get("arguments")
        kinds = {str(key): str(kind) for key, kind in given.items()} if isinstance(given, Mapping) else {}
        return cls(name, reply.get("permission") == "read", kinds, str(reply.get("variadic") or ""))

    @property
    def usage(self) -> str:
        """Name and arguments."""
        return " ".join([self.name, *(f"{key}..." if key == self.variadic else key for key in self.arguments)])

    def read_arguments(self, words: Sequence[str]) -> dict[str, Any]:
        """Words of a command line as arguments: in their order, or as name=value.

        :raises click.UsageError: too many, or one of a wrong type.
        """
        found: dict[str, Any] = {}
        plain = []
        for word in words:
            name, equals, value = word.partition("=")
            if equals and name in self.arguments:
                found[name] = self._value(name, value)
            else:
                plain.append(word)
        for name in self.arguments:
            if name in found or not plain:
                continue
            if name == self.variadic:
                found[name], plain = plain, []
            else:
                found[name] = self._value(name, plain.pop(0))
        if plain:
            raise click.UsageError(f"{plain[0]!r} is too much: kw … {self.usage}")
        return found

    def _value(self, name: str, text: str) -> Any:
        kind = self.arguments[name]
        try:
            if kind in ("int", "float"):
                return int(text) if kind == "int" else float(text)
            if kind == "bool":
                if text.lower() in (*_TRUE, *_FALSE):
                    return text.lower() in _TRUE
                raise ValueError
        except ValueError:
            raise click.UsageError(f"{self.name}: {name} must be {kind}, not {text!r}") from None
        if kind in ("list", "dict"):
            return self._json(name, kind, text)
        return [text] if name == self.variadic else text

    def _json(self, name: str, kind: str, text: str) -> Any:
        import json

        try:
            value = json.loads(text)
        except ValueError:
            value = text.split(",") if kind == "list" else None
        if type(value).__name__ != kind:
            raise click.UsageError(f"{self.name}: {name} must be a JSON {kind}, not {text!r}")
        return value


@dataclass
class Catalogue:
    """Commands by name and alias; `problems` names plugins that cannot be imported."""

    commands: dict[str, Described] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def installed(cls) -> Catalogue:
        """Those of the entry points of this environment."""
        found = cls()
        for point in sorted(importlib.metadata.entry_points(group=GROUP)):
            try:
                command = point.load()
            except Exception as error:  # a plugin's import may raise anything; the others are listed all the same
                found.problems.append(
                    f"{point.name} ({point.value}) cannot be imported: {type(error).__name__}: {error}"
                )
                continue
            if isinstance(command, ControlCommand):
                described = Described.of(command)
                found.commands.update(dict.fromkeys((command.name, *command.aliases), described))
        return found

    def find(self, name: str) -> Described | None:
        """By name or alias."""
        return self.commands.get(name)

    def of_kind(self, is_reading: bool) -> list[Described]:
        """Those that change nothing, or those that do, by name."""
        known = {each.name: each for each in self.commands.values() if each.is_reading is is_reading}
        return [known[name] for name in sorted(known)]

    def unknown(self, name: str) -> str:
        """Words for a name that neither this environment nor a worker knows."""
        near = difflib.get_close_matches(name, self.commands, n=1, cutoff=0.6)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        return f"neither this environment nor a worker knows a command {name!r:.80}{hint}"
