"""Make the servers available that tests and benchmarks start privately: found on PATH, else installed with the
system's package manager, else an explanation and exit code 1. Never starts one. Standard library only.

    python scripts/servers.py redis-server rabbitmq-server
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = {
    "redis-server": {"apt-get": "redis-server", "dnf": "redis", "apk": "redis", "brew": "redis"},
    "rabbitmq-server": dict.fromkeys(("apt-get", "dnf", "apk"), "rabbitmq-server") | {"brew": "rabbitmq"},
}
INSTALL = {
    "apt-get": ["apt-get", "install", "-y", "--no-install-recommends"],
    "dnf": ["dnf", "install", "-y"],
    "apk": ["apk", "add"],
    "brew": ["brew", "install"],
}
REFRESH = {"apt-get": ["apt-get", "update"]}  # the others fetch their lists by themselves


def privilege(manager: str) -> list[str] | None:
    """What to put before a command of the manager, or None when this user may not install."""
    if manager == "brew" or os.geteuid() == 0:
        return []
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"]
    return None


def attempt(command: list[str]) -> bool:
    """Run one command of a package manager; its output is shown only when it fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        print(f"{' '.join(command)}: exit code {result.returncode}\n{result.stderr[-600:]}", file=sys.stderr)
    return result.returncode == 0


def install(server: str) -> bool:
    """Try the package manager of this system; True when the server is on PATH afterwards."""
    for manager, package in PACKAGES[server].items():
        if not shutil.which(manager):
            continue
        before = privilege(manager)
        if before is None:
            return False
        print(f"installing {package} with {manager} (tests start private copies of it) ...", flush=True)
        command = [*before, *INSTALL[manager], package]
        if not attempt(command) and manager in REFRESH and attempt([*before, *REFRESH[manager]]):
            attempt(command)
        return shutil.which(server) is not None
    return False


def main() -> None:
    """Ensure each server named on the command line."""
    for server in sys.argv[1:]:
        if server not in PACKAGES:
            sys.exit(f"unknown server {server!r} (known: {', '.join(PACKAGES)})")
        if shutil.which(server) or install(server):
            continue
        ways = "\n".join(f"    {' '.join([*INSTALL[manager], name])}" for manager, name in PACKAGES[server].items())
        sys.exit(f"{server} is not on PATH and could not be installed from here. As root, one of:\n{ways}")


if __name__ == "__main__":
    main()
