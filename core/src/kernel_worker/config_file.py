"""Settings in a file: `kw.toml`, or the table `[tool.kw]` of `pyproject.toml`.

One table per section: `[worker]`, `[<plugin or pool>]`. Unknown names are errors, so that a mistyped setting
is not silently the default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .nearest import did_you_mean

KW_TOML, PYPROJECT = "kw.toml", "pyproject.toml"


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """The tables of one file; `label` is how messages call it."""

    label: str
    tables: Mapping[str, Any]

    def section(self, name: str, known: Collection[str]) -> Mapping[str, Any]:
        """The keys of one section; {} when the file does not have it.

        :param known: names of the settings that the section declares.
        :raises ConfigError: an unknown key.
        """
        table = self.tables.get(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{self.label}: {name!r} must be a table: [{name}]")
        for key in table:
            if key.replace("-", "_") not in known:
                raise ConfigError(f"{self.label}: [{name}] has no setting {key!r}{did_you_mean(key, known)}")
        return {key.replace("-", "_"): value for key, value in table.items()}

    def check_sections(self, known: Collection[str]) -> None:
        """Refuse what belongs to no plugin.

        :param known: sections of the selected plugins, and names of all installed ones.
        :raises ConfigError: names the table and the nearest known one.
        """
        for name, table in self.tables.items():
            if not isinstance(table, dict):
                raise ConfigError(
                    f"{self.label}: {name!r} stands outside of a section",
                    hint=f"put it under a table: [worker] {name} = …",
                )
            if name not in known:
                raise ConfigError(f"{self.label}: no section named {name!r}{did_you_mean(name, known)}")


def find_settings_file(named: str | None = None, folder: Path | None = None) -> SettingsFile | None:
    """Read the settings file: the one named, else `kw.toml`, else `pyproject.toml` when it has `[tool.kw]`.

    :param named: path from `--config`; a file called pyproject.toml is read by its `[tool.kw]`.
    :param folder: where to look; default: the working directory.
    :raises ConfigError: the named file is missing, unreadable or not TOML.
    """
    if named is not None:
        path = Path(named)
        if not path.is_file():
            raise ConfigError(f"no configuration file at {named}")
        return (
            _from_pyproject(path) or SettingsFile(named, {}) if path.name == PYPROJECT else _from_kw_toml(path, named)
        )
    here = folder or Path.cwd()
    if (here / KW_TOML).is_file():
        return _from_kw_toml(here / KW_TOML, KW_TOML)
    return _from_pyproject(here / PYPROJECT) if (here / PYPROJECT).is_file() else None


def _from_kw_toml(path: Path, label: str) -> SettingsFile:
    return SettingsFile(label, _parse(path, _read(path)))


def _from_pyproject(path: Path) -> SettingsFile | None:
    content = _read(path)
    if b"kw" not in content:  # most projects: spares them the TOML parser
        return None
    tools = _parse(path, content).get("tool")
    table = tools.get("kw") if isinstance(tools, dict) else None
    if table is None:
        return None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: 'kw' in [tool] must be a table: [tool.kw.worker]")
    return SettingsFile(f"{PYPROJECT} [tool.kw]", table)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
