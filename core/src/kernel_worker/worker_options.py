"""The kernel's own section of the configuration: what `kw run` can be told without any plugin."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

from .logs import FORMATS, expand_log_path
from .options import at_least, byte_size, duration, option, text, word_list
from .secret import Secret

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def cpus_available() -> int:
    """How many processors this process may use; at least 1."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def expand_node_name(pattern: str, host: str = "") -> str:
    """The node name that a pattern stands for: `%h` host name, `%n` its first label, `%d` the rest, `%%` a percent.

    A pattern without "@" names the host part: "w1" becomes "kw@w1".

    :param host: default: this machine's name.
    :raises ValueError: a key that does not exist, or nothing left for a name.
    """
    host = host or socket.gethostname()
    label, _, domain = host.partition(".")
    keys = {"h": host, "n": label, "d": domain, "%": "%"}
    literal, *parts = pattern.replace("%%", "%\0").split("%")
    for part in parts:
        key = part[:1].replace("\0", "%")
        if key not in keys:
            raise ValueError(f"{pattern!r} has the unknown key '%{key}' (there are %h, %n, %d and %%)")
        literal += keys[key] + part[1:]
    name, at, place = literal.rpartition("@")
    if not place or (at and not name) or any(c.isspace() for c in literal):
        raise ValueError(f"{pattern!r} does not make a node name such as kw@{label}")
    return literal if at else f"kw@{literal}"


def _node_pattern(value: Any) -> str:
    expand_node_name(text(value))
    return text(value)


def _application(value: Any) -> str:
    name = text(value)
    if not all(part.isidentifier() for part in name.replace(":", ".", 1).split(".")):
        raise ValueError(f"{name!r} is not the name of a module, as in package.module or package.module:attribute")
    return name


class Concurrency(int):
    """Tasks at once; `processes` is set where they were asked for as "processes x slots"."""

    processes: int | None = None

    @classmethod
    def of(cls, processes: int, slots: int) -> Concurrency:
        """So many processes with so many slots each."""
        concurrency = cls(processes * slots)
        concurrency.processes = processes
        return concurrency


def _concurrency(value: Any) -> int | None:
    if value == "auto" or isinstance(value, Concurrency):
        return None if value == "auto" else value
    processes, times, slots = str(value).strip().lower().partition("x")
    if not times:
        return at_least(1)(value)
    if not (processes.isdecimal() and slots.isdecimal() and int(processes) and int(slots)):
        raise ValueError(f"{value!r} is not a number of tasks, nor processes x slots as in 4x250")
    return Concurrency.of(int(processes), int(slots))


def _queue_list(value: Any) -> tuple[str, ...]:
    """Names of queues, each with "=N" behind it where at most N of its tasks may run at once."""
    names = word_list(value)
    for each in names:
        name, equals, number = each.partition("=")
        if not name or (equals and not (number.isdigit() and int(number))):
            raise ValueError(f"{each!r} is not QUEUE or QUEUE=N, N being how many of its tasks may run at once")
    return names


def _log_level(value: Any) -> str:
    level = text(value).strip().lower()
    level = {"fatal": "critical", "warn": "warning"}.get(level, level)
    if level not in LOG_LEVELS:
        raise ValueError(f"{value!r} is not one of {', '.join(LOG_LEVELS)}")
    return level


def _url(value: Any) -> str:
    # Celery takes a list of brokers to fail over between; one text with ";" says the same.
    return ";".join(map(text, value)) if isinstance(value, (list, tuple)) else text(value).strip()


def _log_path(value: Any) -> str:
    expand_log_path(text(value), "kw@host")
    return text(value)


def _limit(value: Any) -> float | None:
    return duration(value) or None


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Section `worker`. Durations are in seconds; a limit of 0 means none."""

    app: str | None = option(
        None, "-A", "--app", parse=_application, metavar="MODULE[:ATTR]", help="The application to run."
    )
    broker: Secret | None = option(
        None,
        "-b",
        "--broker",
        celery="broker_url",
        parse=_url,
        secret=True,
        metavar="URL",
        help="Where messages come from.",
    )
    result_backend: Secret | None = option(
        None,
        "--result-backend",
        celery="result_backend",
        parse=_url,
        secret=True,
        metavar="URL",
        help="Where results go.",
    )
    pool: str | None = option(None, "-P", "--pool", metavar="NAME", help="How tasks run at once [prefork].")
    concurrency: int | None = option(
        None,
        "-c",
        "--concurrency",
        celery="worker_concurrency",
        parse=_concurrency,
        metavar="N|PxS|auto",
        help="Tasks to run at once, or processes x slots [auto: the CPUs this process may use].",
    )
    queues: tuple[str, ...] = option(
        (),
        "-Q",
        "--queues",
        parse=_queue_list,
        metavar="A,B=N",
        help="Queues to consume from, in order; at most N tasks of B at once.",
    )
    exclude_queues: tuple[str, ...] = option(
        (), "-X", "--exclude-queues", parse=word_list, metavar="A,B", help="Queues of the application to leave out."
    )
    hostname: str = option(
        "kw@%h",
        "-n",
        "--hostname",
        parse=_node_pattern,
        metavar="NAME",
        help="Node name; %h host, %n its first label, %d the rest.",
    )
    loglevel: str = option(
        "warning", "-l", "--loglevel", parse=_log_level, choices=LOG_LEVELS, metavar="LEVEL", help="What to log."
    )
    logfile: str | None = option(
        None,
        "-f",
        "--logfile",
        parse=_log_path,
        metavar="PATH",
        help="Log there instead of stderr; %n name, %h host, %i a file per process.",
    )
    log_format: str = option("text", "--log-format", choices=FORMATS, metavar="text|json", help="How to log.")
    plugins: str | None = option(
        None, "--plugins", metavar="NAMES", help="Exactly these plugins (a,b), or -a to leave one out."
    )
    prefetch_multiplier: int | None = option(
        None,
        "--prefetch-multiplier",
        celery="worker_prefetch_multiplier",
        parse=at_least(0),
        metavar="N",
        help="Messages to hold per slot at most; 0 no bound [adapts to the measured rate].",
    )
    grace: float = option(
        25.0,
        "--grace",
        parse=duration,
        metavar="SECONDS",
        help="How long running tasks may go on after the worker was asked to stop.",
    )
    purge: bool = option(False, "--purge", is_flag=True, help="Delete waiting messages before starting.")
    pidfile: str | None = option(None, "--pidfile", metavar="PATH", help="Write the process id there.")
    lease: float = option(
        15.0,
        "--lease",
        celery="worker_lease",
        parse=duration,
        metavar="SECONDS",
        help="After a crash, messages in flight come back in this time.",
    )
    max_deliveries: int = option(
        3,
        celery="task_max_deliveries",
        parse=at_least(1),
        help="Lost executors a message may cost before it goes to the dead letters.",
    )
    unknown_max_returns: int = option(
        5,
        celery="task_unknown_max_returns",
        parse=at_least(0),
        help="How often a message of an unknown task goes back for a newer worker, before it is dead.",
    )
    max_body: int = option(16 * 1024 * 1024, parse=byte_size, help="Largest message body in bytes (16M, 64k).")
    startup_timeout: float | None = option(
        None, "--startup-timeout", parse=_limit, metavar="SECONDS", help="Give up when not ready after this long."
    )
    time_limit: float | None = option(
        None,
        "--time-limit",
        celery="task_time_limit",
        parse=_limit,
        metavar="SECONDS",
        help="End a task's process after this long.",
    )
    soft_time_limit: float | None = option(
        None,
        "--soft-time-limit",
        celery="task_soft_time_limit",
        parse=_limit,
        metavar="SECONDS",
        help="Raise SoftTimeLimitExceeded in a task after this long.",
    )
    workdir: str | None = option(None, "--workdir", metavar="DIR", help="Change to this folder first.")

    def __post_init__(self) -> None:
        if self.soft_time_limit and self.time_limit and self.soft_time_limit > self.time_limit:
            raise ValueError(
                f"soft_time_limit {self.soft_time_limit:g} s lies above time_limit {self.time_limit:g} s and would "
                "never act: make it smaller"
            )
        if both := sorted(set(self.queue_names) & set(self.exclude_queues)):
            raise ValueError(f"queue {both[0]!r} is both asked for (-Q) and left out (-X)")
        if self.lease < 1:
            raise ValueError(f"lease {self.lease:g} s is too short to be renewed in time: at least 1")

    @property
    def queue_names(self) -> tuple[str, ...]:
        """The queues that were named, without their caps."""
        return tuple(dict.fromkeys(each.partition("=")[0] for each in self.queues))

    @property
    def queue_caps(self) -> dict[str, int]:
        """How many tasks of a queue may run at once, where it is bounded."""
        return {name: int(number) for name, equals, number in (q.partition("=") for q in self.queues) if equals}

    @property
    def tasks_at_once(self) -> int:
        """`concurrency`, or the CPUs this process may use when it is not set."""
        return self.concurrency or cpus_available()

    @property
    def node(self) -> str:
        """The node name, expanded."""
        return expand_node_name(self.hostname)
