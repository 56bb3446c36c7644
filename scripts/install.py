"""Install the members of the workspace, editable, and a profile's tools into the running interpreter's .venv.

Run by `scripts/environment`. Does nothing when the profile was installed from the same declarations before:
a stamp in .venv holds a digest of every pyproject.toml, constraints.txt and this file. Standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
DEMO_MEMBERS = ("core", "plugins/app_native", "plugins/pool_prefork", "plugins/broker_sqlite", "plugins/result_sqlite")
PROFILES = ("bare", "demo", "dev", "bench")


def members(profile: str) -> list[Path]:
    """Folders to install: for the demo only what it runs, so that a first look takes seconds."""
    if profile == "demo":
        return [ROOT / name for name in DEMO_MEMBERS]
    plugins = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
    return [ROOT / "core", *plugins, ROOT]


def digest(folders: list[Path]) -> str:
    """Changes whenever something is declared that an earlier installation cannot have."""
    state = hashlib.sha256(sys.version.encode())
    for path in [
        *(folder / "pyproject.toml" for folder in folders),
        ROOT / "pyproject.toml",
        CONSTRAINTS,
        Path(__file__),
    ]:
        state.update(str(path).encode() + b"\0" + path.read_bytes())
    return state.hexdigest()


def installers() -> list[list[str]]:
    """Command lines that install packages here, best first."""
    found = []
    if uv := shutil.which("uv"):
        found.append([uv, "pip", "install", "--quiet", "--python", sys.executable])
    if importlib.util.find_spec("pip") is None:
        subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True, stdout=subprocess.DEVNULL)
    # -qq: pip's warnings are about its own configuration, not about this project.
    found.append([sys.executable, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"])
    return found


def install(arguments: list[str]) -> None:
    """Run the first installer that succeeds; ends the process with a message when none does."""
    for command in installers():
        if subprocess.run([*command, "--constraint", str(CONSTRAINTS), *arguments], cwd=ROOT).returncode == 0:
            return
        print(f"{Path(command[0]).name} could not install the packages", file=sys.stderr)
    sys.exit("kernel-worker: nothing was changed but .venv; is the package index reachable? Then run the same again.")


def main() -> None:
    """Bring the environment to the profile named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in PROFILES:
        sys.exit(f"usage: scripts/environment {'|'.join(PROFILES)}")
    profile = sys.argv[1]
    if profile == "bare":  # an interpreter is all that is needed
        return
    folders = members(profile)
    expected = digest(folders)
    stamp = Path(sys.prefix) / f"installed-{profile}"
    if stamp.exists() and stamp.read_text() == expected:
        return
    print(f"installing into {os.path.relpath(sys.prefix)} ({profile}) ...", flush=True)
    began = time.monotonic()
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    # The build backend comes first: building one environment per member to build it in would take a minute.
    install([*groups["build"], *groups.get(profile, [])])
    editable = [argument for folder in folders for argument in ("--editable", str(folder))]
    install(["--no-build-isolation", *editable])
    stamp.write_text(expected)
    print(f"installed in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
