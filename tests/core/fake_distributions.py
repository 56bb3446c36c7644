"""Small distributions in a folder of their own: what `pip install` leaves behind, without pip.

`Site.alone()` hides the distributions that are really installed, so that a test knows every plugin there is.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import pluggy
import stevedore.driver
import stevedore.extension

# Imported here, so that they stay available while `alone` hides the folder they are installed in.
_NEEDED = (click, pluggy, stevedore)

POOL = """
    from dataclasses import dataclass
    from kernel_worker import Pool, option

    @dataclass(frozen=True, slots=True)
    class Options:
        depth: int = option(1, "--{name}-depth", celery="worker_{name}_depth", help="How deep {name} is.")

    class Driver(Pool):
        name = "{name}"
        Options = Options
"""
BROKER = """
    from kernel_worker import Broker

    class Driver(Broker):
        pass
"""
LOADER = """
    class Loader:
        name = "{name}"
        api = 1
"""


class Site:
    """A folder like site-packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self,
        distribution: str,
        entry_points: Mapping[str, Mapping[str, str]],
        modules: Mapping[str, str] | None = None,
        version: str = "1.0",
        requires: tuple[str, ...] = (),
        folder: Path | None = None,
    ) -> None:
        """Add a distribution.

        :param entry_points: kind ("pools", …) to name to import string.
        :param modules: module name to source.
        :param folder: another folder on the path, for two distributions of one name.
        """
        place = folder or self.folder
        info = place / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}"]
        (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {name}" for name in requires)]) + "\n")
        groups = (
            f"[kernel_worker.{kind}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for kind, points in entry_points.items()
        )
        (info / "entry_points.txt").write_text("\n".join(groups))
        for name, source in (modules or {}).items():
            (place / f"{name}.py").write_text(textwrap.dedent(source))

    def pool(self, name: str, distribution: str = "") -> None:
        """Add a pool with one option, `--<name>-depth`."""
        module = f"fake_pool_{name}"
        source = textwrap.dedent(POOL).replace("{name}", name)
        self.install(distribution or f"kernel-pool-{name}", {"pools": {name: f"{module}:Driver"}}, {module: source})

    def broker(self, *schemes: str, source: str = BROKER) -> None:
        """Add a broker with its publisher; the first scheme names the distribution."""
        module = f"fake_broker_{schemes[0]}"
        point = dict.fromkeys(schemes, f"{module}:Driver")
        self.install(f"kernel-broker-{schemes[0]}", {"brokers": point, "publishers": point}, {module: source})

    def results(self, *schemes: str) -> None:
        """Add a result backend."""
        points = dict.fromkeys(schemes, f"fake_results_{schemes[0]}:Driver")
        self.install(f"kernel-result-{schemes[0]}", {"results": points})

    def results_module(self, scheme: str) -> None:
        """Make the result backends of `results(scheme)` importable."""
        (self.folder / f"fake_results_{scheme}.py").write_text("class Driver: pass\n")

    def loader(self, name: str = "native", distribution: str = "kernel-app") -> None:
        """Add an application loader with a plugin module of commands."""
        self.install(
            distribution,
            {"apps": {name: f"fake_{name}_loader:Loader"}, "plugins": {"app": f"fake_{name}_commands"}},
            {
                f"fake_{name}_loader": textwrap.dedent(LOADER).replace("{name}", name),
                f"fake_{name}_commands": "kw_api = 1\n",
            },
        )

    def plugin(self, name: str, source: str, distribution: str = "") -> None:
        """Add a plugin module; it gets `kw_api = 1` and `hookimpl`."""
        module = f"fake_plugin_{name}"
        head = "from kernel_worker import hookimpl\nkw_api = 1\n"
        self.install(
            distribution or f"kernel-{name}",
            {"plugins": {name: module}},
            {module: head + textwrap.dedent(source)},
        )

    def standard(self) -> None:
        """Two pools, two brokers with results, a loader: enough to run."""
        for name in ("prefork", "solo"):
            self.pool(name)
        self.broker("redis", "rediss")
        self.broker("sqlite")
        self.results("redis", "rediss")
        self.results("sqlite")
        self.loader()

    @contextmanager
    def alone(self) -> Iterator[Site]:
        """Make these distributions the only ones there are."""
        before, modules = list(sys.path), set(sys.modules)
        seeded = dict(stevedore.extension.ExtensionManager.ENTRY_POINT_CACHE)
        sys.path[:] = [str(self.folder), *(p for p in sys.path if "-packages" not in p)]
        importlib.invalidate_caches()
        try:
            yield self
        finally:
            sys.path[:] = before
            importlib.invalidate_caches()
            stevedore.extension.ExtensionManager.ENTRY_POINT_CACHE.clear()
            stevedore.extension.ExtensionManager.ENTRY_POINT_CACHE.update(seeded)
            for name in set(sys.modules) - modules:
                if name.startswith("fake_"):
                    del sys.modules[name]

    def kw(self, *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Finished:
        """Run `kw` in a process of its own that sees these distributions only."""
        program = (
            "import sys, click, pluggy, stevedore.driver, importlib.metadata, kernel_worker\n"
            f"sys.path[:] = [{str(self.folder)!r}, *(p for p in sys.path if '-packages' not in p)]\n"
            "from kernel_worker.cli import main\n"
            "sys.exit(main())\n"
        )
        return subprocess.run(
            [sys.executable, "-c", program, *args],
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env={"PATH": "/usr/bin:/bin", **(env or {})},
            timeout=30,
        )


Finished = subprocess.CompletedProcess[str]
