"""The sending side of a measurement, in a process of its own: `python -m benchmarks.client APP send|roundtrip N`.

Uses the system's own API (`delay`, `get`) and prints one JSON line.
"""

from __future__ import annotations

import importlib
import json
import sys
import time

WARM_UP = 10
CAP_S = 15.0
"""Stop early rather than hold up the whole run when a system is very slow."""


def send(task, number: int) -> dict[str, float]:
    """`delay` in a loop; connections are opened before the clock starts."""
    task.delay()
    began = time.perf_counter()
    sent = 0
    while sent < number and time.perf_counter() - began < CAP_S:
        for _ in range(min(100, number - sent)):
            task.delay()
        sent += 100
    return {"rate": min(sent, number) / (time.perf_counter() - began)}


def roundtrip(task, number: int) -> dict[str, list[float]]:
    """Send, wait for the result, again: seconds of each."""
    seconds = []
    end = time.perf_counter() + CAP_S
    for turn in range(number + WARM_UP):
        began = time.perf_counter()
        task.delay().get(timeout=20)
        if turn >= WARM_UP:
            seconds.append(time.perf_counter() - began)
        if time.perf_counter() > end:
            break
    return {"seconds": seconds}


def main() -> None:
    """Run one operation against the application named on the command line."""
    application, operation, number = sys.argv[1:]
    task = importlib.import_module(application).noop
    print(json.dumps({"send": send, "roundtrip": roundtrip}[operation](task, int(number))))


if __name__ == "__main__":
    main()
