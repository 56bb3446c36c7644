"""Write constraints.txt: one version of every third-party package, working on Python 3.11 to 3.13.

Names and versions only: no addresses and no digests, so the file is the same wherever packages come from.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Written by `make constraints`: what the tests ran with. Not a requirement of any published package.\n"


def third_party() -> list[str]:
    """Requirements of all members and dependency groups, without the members themselves."""
    found: set[str] = set()
    names: set[str] = set()
    for path in [ROOT / "core/pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml")), ROOT / "pyproject.toml"]:
        declared = tomllib.loads(path.read_text())
        names.add(declared["project"]["name"])
        found.update(declared["project"].get("dependencies", []))
        for group in declared.get("dependency-groups", {}).values():
            found.update(group)
        found.update(declared["build-system"]["requires"])
    return sorted(line for line in found if not any(line.startswith(name) for name in names))


def main() -> None:
    """Resolve with uv and write the file."""
    uv = shutil.which("uv")
    if uv is None:
        sys.exit("make constraints needs uv on PATH: pip install uv")
    command = [uv, "pip", "compile", "-", "--universal", "--python-version", "3.11", "--upgrade"]
    command += ["--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"]
    result = subprocess.run(command, input="\n".join(third_party()), capture_output=True, text=True, cwd=ROOT)
    if result.returncode != 0:
        sys.exit(result.stderr)
    (ROOT / "constraints.txt").write_text(HEADER + result.stdout)
    print(f"constraints.txt: {len(result.stdout.splitlines())} packages")


if __name__ == "__main__":
    main()
