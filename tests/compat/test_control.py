"""Remote control, side by side: what a Celery worker answers, `kw` answers with the same keys and types; and both
clients command both workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.testing import eventually

from . import clients
from .peers import CeleryWorker, ClientProcess, environment, start_kw

CELERY_NODE, KW_NODE = "controlled@peer", "controlled@kw"
NODES = [CELERY_NODE, KW_NODE]
HEAD = re.compile(r"^->\s+(\S+): (\w+)", re.MULTILINE)
"""The first line of a node's answer in what `celery inspect` and `celery control` print."""
EXTRA_KEYS_OF_CELERY = {
    # billiard's and kombu's own; nobody reads them
    "stats.broker": {"alternates"},
}


@dataclass
class Site:
    """A broker with a worker of either kind and a client of either kind."""

    url: str
    results: str
    folder: Path
    clients: dict[str, ClientProcess]

    def ask(self, name: str, nodes: list[str] | None = None, client: str = "celery", **arguments: Any) -> Any:
        """What the nodes answer to a stock Celery client, or to ours."""
        found = self.clients[client].do(clients.command, name, arguments, nodes or NODES)
        assert set(found) == set(nodes or NODES), f"{name}: answers of {sorted(found)}"
        return found

    def line(self, kind: str, *words: str) -> tuple[int, str]:
        """What `celery inspect …` or `celery control …` prints; it asks both workers."""
        asked = ("-t", "10", "-d", ",".join(NODES))
        found: tuple[int, str] = self.clients["celery"].do(clients.command_line, "-b", self.url, kind, *asked, *words)
        print(found[1])
        return found

    def read(self, kind: str, *words: str) -> dict[str, Any]:
        """The same as an object: {node: reply}."""
        code, text = self.line(kind, "-j", *words)
        assert code == 0, text
        replies = json.loads(text[text.index("[" if kind == "control" else "{") :])
        found: dict[str, Any] = {}
        for reply in replies if kind == "control" else [replies]:
            found.update(reply)
        assert set(found) == set(NODES)
        return found

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command line, of Celery or of `kw`."""
        environ = {**os.environ, **environment(self.url, "controlled")}
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=self.folder, env=environ, capture_output=True, text=True, timeout=30
        )
        print(done.stdout, done.stderr)
        return done


@pytest.fixture(scope="module", params=["redis", "amqp"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Both workers, with one process each."""
    amqp = request.param == "amqp"
    url = request.getfixturevalue("rabbitmq_server").url if amqp else request.getfixturevalue("url")
    folder = tmp_path_factory.mktemp(f"control-{request.param}")
    results = request.getfixturevalue("url")
    settings = {"result_backend": results}
    peer = CeleryWorker(folder, url, "controlled-c", "-c", "1", "-n", CELERY_NODE, settings=settings, heartbeat=True)
    worker = start_kw(folder, url, "controlled-k", "-c", "1", "-n", KW_NODE, "--result-backend", results)
    started = {kind: ClientProcess(kind, url) for kind in ("celery", "kw")}
    try:
        peer.wait_until_ready()
        worker.wait_for_output("remote control listens")
        yield Site(url, results, folder, started)
    finally:
        for client in started.values():
            client.stop()
        print(f"--- kw:\n{worker.output}\n--- Celery:\n{peer.output}")
        worker.kill()
        peer.kill()


def differences(theirs: Any, ours: Any, place: str) -> list[str]:
    """What a reader of Celery's replies would miss in ours. None fits everything: either side may know nothing."""
    if theirs is None or ours is None:
        return []
    if isinstance(theirs, bool) or isinstance(ours, bool):
        return [] if type(theirs) is type(ours) else [f"{place}: {theirs!r} and {ours!r}"]
    if isinstance(theirs, (int, float)) and isinstance(ours, (int, float)):
        return []
    if type(theirs) is not type(ours):
        return [f"{place}: {theirs!r} and {ours!r}"]
    if isinstance(theirs, list):
        return differences(theirs[0], ours[0], f"{place}[]") if theirs and ours else []
    if not isinstance(theirs, dict):
        return []
    optional = EXTRA_KEYS_OF_CELERY.get(place, set())
    found = [f"{place}: no key {key!r}" for key in theirs if key not in ours and key not in optional]
    for key in theirs.keys() & ours.keys():
        found += differences(theirs[key], ours[key], f"{place}.{key}")
    return found


SAME: dict[str, dict[str, Any]] = {
    "hello": {"from_node": "somebody@else", "revoked": {}},
    "dump_active": {},
    "dump_reserved": {},
    "dump_schedule": {},
    "dump_revoked": {},
    "dump_tasks": {"taskinfoitems": ["rate_limit"]},
}
"""Commands and other names of commands that Celery's command line does not offer, with arguments."""


@pytest.mark.parametrize(("name", "arguments"), SAME.items(), ids=SAME)
def test_replies_have_the_same_keys_and_types(site: Site, name: str, arguments: dict[str, Any]) -> None:
    answers = site.ask(name, **arguments)

    assert differences(answers[CELERY_NODE], answers[KW_NODE], name) == []


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rate_limit", {"task_name": "nosuch", "rate_limit": "1/s"}),
        ("time_limit", {"task_name": "nosuch", "hard": 1}),
        ("rate_limit", {"task_name": "compat.total", "rate_limit": 0}),
        ("enable_events", {}),
        ("disable_events", {}),
        ("add_consumer", {"queue": "controlled-extra"}),
        ("cancel_consumer", {"queue": "controlled-extra"}),
        ("revoke", {"task_id": "no-such-task"}),
        ("terminate", {"task_id": "no-such-task", "signal": "SIGTERM"}),
        ("pool_grow", {"n": 1}),
        ("pool_shrink", {"n": 1}),
        ("ping", {}),
    ],
)
def test_replies_have_the_same_words(site: Site, name: str, arguments: dict[str, Any]) -> None:
    if name == "pool_shrink":
        site.ask("pool_grow", n=1)
    answers = site.ask(name, **arguments)

    assert answers[KW_NODE] == answers[CELERY_NODE]


def test_conf_shows_settings_by_the_same_names_without_secrets(site: Site) -> None:
    answers = site.ask("conf")

    common = {"broker_url", "result_backend", "task_default_queue", "task_queues"}
    assert common <= set(answers[CELERY_NODE]) & set(answers[KW_NODE])
    assert "guest:guest" not in json.dumps(answers[KW_NODE])


def test_an_unknown_command_is_an_error_of_both(site: Site) -> None:
    answers = site.ask("nosuch")

    assert all(set(answer) == {"error"} for answer in answers.values())


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", ["celery", "kw"])
def test_both_clients_question_both_workers(site: Site, client: str, node: str) -> None:
    def ask(name: str, *args: Any) -> Any:
        return site.clients[client].do(clients.question, name, args, node)

    assert ask("ping") == {node: {"ok": "pong"}}
    assert "compat.add" in " ".join(ask("registered")[node])
    assert ask("active_queues")[node][0]["name"].startswith("controlled-")
    assert ask("query_task", "unknown") == {node: {}}
    assert ask("stats")[node]["pool"]["max-concurrency"] >= 1
    assert set(ask("conf")[node]) >= {"broker_url"}
    assert isinstance(ask("revoked")[node], list)
    assert isinstance(ask("clock")[node]["clock"], int)
    for name in ("active", "reserved", "scheduled"):
        assert isinstance(ask(name)[node], list)


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", ["celery", "kw"])
def test_both_clients_command_both_workers(site: Site, client: str, node: str) -> None:
    def tell(name: str, *args: Any) -> Any:
        [reply] = site.clients[client].do(clients.order, name, args, node)
        return reply[node]

    assert tell("rate_limit", "compat.total", "50/s") == {"ok": "new rate limit set successfully"}
    assert tell("time_limit", "compat.total", 5, 10) == {"ok": "time limits set successfully"}
    assert tell("add_consumer", "controlled-more") == {"ok": "add consumer controlled-more"}
    assert tell("cancel_consumer", "controlled-more") == {"ok": "no longer consuming from controlled-more"}
    assert tell("pool_grow", 1) == {"ok": "pool will grow"}
    assert tell("pool_shrink", 1) == {"ok": "pool will shrink"}
    assert tell("revoke", "nobody") == {"ok": "tasks {'nobody'} flagged as revoked"}
    assert "error" in tell("autoscale", 3, 1)


INSPECT: dict[str, tuple[str, ...]] = {
    "active": (),
    "active_queues": (),
    "clock": (),
    "conf": ("true",),
    "memdump": ("3",),
    "memsample": (),
    "objgraph": (),
    "ping": (),
    "query_task": ("unknown", "other"),
    "registered": ("rate_limit", "acks_late"),
    "report": (),
    "reserved": (),
    "revoked": (),
    "scheduled": (),
    "stats": (),
}
CONTROL: dict[str, tuple[str, ...]] = {
    "add_consumer": ("controlled-line", "controlled-line", "direct", "controlled-line"),
    "autoscale": ("3", "1"),
    "cancel_consumer": ("controlled-line",),
    "disable_events": (),
    "election": (),
    "enable_events": (),
    "heartbeat": (),
    "pool_grow": ("1",),
    "pool_restart": (),
    "pool_shrink": ("1",),
    "rate_limit": ("compat.total", "100/s"),
    "revoke": ("no-such-task", "nor-this"),
    "revoke_by_stamped_headers": ("stamp=x", "stamp=y"),
    "shutdown": (),
    "terminate": ("SIGTERM", "no-such-task"),
    "time_limit": ("compat.total", "9", "10"),
}
"""Every command of Celery's command line, with words that do nobody harm."""
LINES = [(kind, name) for kind, table in (("inspect", INSPECT), ("control", CONTROL)) for name in table]


def test_the_table_has_every_command_of_celerys_command_line(site: Site) -> None:
    offered = site.clients["celery"].do(clients.commands_of_celery)

    assert offered == {"inspect": set(INSPECT), "control": set(CONTROL)}


@pytest.mark.parametrize(("kind", "name"), [line for line in LINES if line[1] != "shutdown"])
def test_celerys_command_line_gets_the_same_keys_and_types(site: Site, kind: str, name: str) -> None:
    if name == "pool_shrink":
        site.line("control", "pool_grow", "2")
    words = {**INSPECT, **CONTROL}[name]
    answers = site.read(kind, name, *words)

    theirs, ours = answers[CELERY_NODE], answers[KW_NODE]
    if name == "conf":  # each lists its own settings
        theirs = {key: value for key, value in theirs.items() if key in ours and key != "task_queues"}  # by names
        assert {"broker_url", "result_backend", "task_default_queue"} <= set(theirs)
    if name == "stats":
        theirs["total"] = ours["total"] = None  # by task names
    assert differences(theirs, ours, name) == []


@pytest.mark.parametrize(("kind", "name"), [line for line in LINES if line[1] != "shutdown"])
def test_celerys_command_line_prints_both_alike(site: Site, kind: str, name: str) -> None:
    if name == "pool_shrink":
        site.line("control", "pool_grow", "2")
    code, text = site.line(kind, name, *{**INSPECT, **CONTROL}[name])

    heads = dict(HEAD.findall(text))
    assert code == 0
    assert set(heads) == set(NODES)
    assert heads[KW_NODE] == heads[CELERY_NODE]
    if kind == "inspect":
        assert text.endswith("2 nodes online.\n")


def test_celerys_command_line_shows_a_running_task_alike(site: Site, tmp_path: Path) -> None:
    hold = tmp_path / "go"
    for queue in ("controlled-c", "controlled-k"):
        settings = {"result_backend": site.results}
        site.clients["celery"].do(clients.send, "compat.hold", (str(hold),), queue=queue, settings=settings)
    found: dict[str, Any] = {}

    def both_run() -> bool:
        found.update(site.read("inspect", "active"))
        return all(found[node] for node in NODES)

    try:
        eventually(both_run, within_s=15)
        ids = [found[node][0]["id"] for node in NODES]
        asked = site.read("inspect", "query_task", *ids)
    finally:
        hold.touch()
    eventually(lambda: not any(site.read("inspect", "active").values()), within_s=15)

    theirs, ours = found[CELERY_NODE][0], found[KW_NODE][0]
    assert differences(theirs, ours, "active") == []
    assert (ours["name"], ours["args"]) == (theirs["name"], theirs["args"])
    assert {node: list(known) for node, known in asked.items()} == {
        node: [task_id] for node, task_id in zip(NODES, ids, strict=True)
    }
    assert [next(iter(asked[node].values()))[0] for node in NODES] == ["active", "active"]
    assert differences(asked[CELERY_NODE][ids[0]][1], asked[KW_NODE][ids[1]][1], "query_task") == []


def test_celerys_command_line_lists_both_workers(site: Site) -> None:
    code, text = site.clients["celery"].do(
        clients.command_line, "-b", site.url, "status", "-t", "10", "-d", ",".join(NODES)
    )

    assert code == 0
    assert dict(HEAD.findall(text)) == dict.fromkeys(NODES, "OK")
    assert "2 nodes online." in text


def test_celerys_program_inspects_a_kw_worker(site: Site) -> None:
    """As its users start it, with an application of theirs."""
    command = ("celery", "-A", "tests.compat.celery_app", "inspect", "-t", "10", "-d", KW_NODE, "active_queues")
    done = site.run(*command)

    assert done.returncode == 0
    assert f"{KW_NODE}: OK" in done.stdout
    assert "1 node online." in done.stdout


def test_celerys_event_dump_tells_the_same_of_both(site: Site) -> None:
    """The kinds of events of a task, in their order, as `celery events --dump` prints them."""
    site.line("control", "enable_events")
    log = site.folder / "dump"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "celery", "-b", site.url, "events", "--dump"],
            cwd=site.folder,
            env={**os.environ, **environment(site.url, "controlled")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def told(node: str) -> list[str]:
        kinds = re.findall(rf"^{re.escape(node)} \[[^]]*\] (task \w+|heartbeat)", log.read_text(), re.MULTILINE)
        return list(dict.fromkeys(kinds))

    def are_told(kind: str) -> None:
        eventually(
            lambda: all(kind in told(node) for node in NODES), within_s=30, message=lambda: log.read_text()[-2000:]
        )

    try:
        are_told("heartbeat")  # it hears now
        for queue in ("controlled-c", "controlled-k"):
            settings = {"result_backend": site.results}
            site.clients["celery"].do(clients.call, "compat.add", (40, 2), queue=queue, settings=settings)
        are_told("task succeeded")
    finally:
        process.kill()
        process.wait(10)
        site.line("control", "disable_events")
    assert set(told(KW_NODE)) == set(told(CELERY_NODE))


def test_kws_command_line_inspects_a_celery_worker(site: Site) -> None:
    done = site.run("kernel_worker.cli", "inspect", "-j", "-b", site.url, "-d", CELERY_NODE, "-t", "10", "stats")

    assert json.loads(done.stdout)[CELERY_NODE]["pool"]["max-concurrency"] == 1


def test_kws_status_lists_both_workers(site: Site) -> None:
    command = ("kernel_worker.cli", "status", "-A", "tests.compat.celery_app", "-t", "10", "-d", ",".join(NODES))
    done = site.run(*command)

    for node in NODES:
        assert f"{node}: OK" in done.stdout


def test_celerys_shutdown_is_obeyed_and_not_answered_by_both(site: Site, tmp_path: Path) -> None:
    """Workers of its own."""
    settings = {"result_backend": site.results}
    peer = CeleryWorker(tmp_path, site.url, "ending-c", "-c", "1", "-n", "ending@peer", settings=settings)
    worker = start_kw(tmp_path, site.url, "ending-k", "-c", "1", "-n", "ending@kw", "--result-backend", site.results)
    try:
        peer.wait_until_ready()
        worker.wait_for_output("remote control listens")
        both = ["ending@peer", "ending@kw"]
        eventually(lambda: site.ask("ping", both), within_s=20)
        nodes = ("-d", ",".join(both))
        code, text = site.clients["celery"].do(
            clients.command_line, "-b", site.url, "control", "-t", "0.5", *nodes, "shutdown"
        )

        assert (code, HEAD.findall(text)) == (69, [])
        assert worker.wait() == 0
        peer.wait(15)
    finally:
        worker.kill()
        peer.kill()
