"""Remote control, side by side: what a Celery worker answers, `kw` answers with the same keys and types; and both
clients command both workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.testing import eventually

from . import clients
from .peers import CeleryWorker, ClientProcess, environment, start_kw

CELERY_NODE, KW_NODE = "controlled@peer", "controlled@kw"
NODES = [CELERY_NODE, KW_NODE]
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


SAME = {
    "ping": {},
    "clock": {},
    "hello": {"from_node": "somebody@else", "revoked": {}},
    "active": {},
    "dump_active": {},
    "reserved": {},
    "dump_reserved": {},
    "scheduled": {},
    "dump_schedule": {},
    "revoked": {},
    "dump_revoked": {},
    "registered": {},
    "dump_tasks": {"taskinfoitems": ["rate_limit"]},
    "active_queues": {},
    "query_task": {"ids": ["unknown"]},
    "report": {},
    "memsample": {},
    "memdump": {"samples": 3},
    "objgraph": {},
    "rate_limit": {"task_name": "compat.total", "rate_limit": "100/s"},
    "time_limit": {"task_name": "compat.total", "soft": 100, "hard": 200},
    "enable_events": {},
    "disable_events": {},
    "heartbeat": {},
    "pool_grow": {"n": 1},
    "pool_shrink": {"n": 1},
    "pool_restart": {},
    "autoscale": {"max": 3, "min": 1},
    "add_consumer": {"queue": "controlled-extra"},
    "cancel_consumer": {"queue": "controlled-extra"},
    "revoke": {"task_id": "no-such-task"},
    "terminate": {"task_id": "no-such-task", "signal": "SIGTERM"},
    "revoke_by_stamped_headers": {"headers": {"stamp": ["x"]}},
}
"""Commands whose replies shall be alike, with arguments. `stats`, `conf` and `active` with a task have tests of their own."""


@pytest.mark.parametrize(("name", "arguments"), SAME.items(), ids=SAME)
def test_replies_have_the_same_keys_and_types(site: Site, name: str, arguments: dict[str, Any]) -> None:
    if name == "pool_shrink":
        site.ask("pool_grow", n=1)
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


def test_stats_have_the_same_keys_and_types(site: Site) -> None:
    answers = site.ask("stats")
    for node in NODES:
        del answers[node]["total"]  # by task names

    assert differences(answers[CELERY_NODE], answers[KW_NODE], "stats") == []


def test_conf_shows_settings_by_the_same_names_without_secrets(site: Site) -> None:
    answers = site.ask("conf")

    common = {"broker_url", "result_backend", "task_default_queue", "task_queues"}
    assert common <= set(answers[CELERY_NODE]) & set(answers[KW_NODE])
    assert "guest:guest" not in json.dumps(answers[KW_NODE])


def test_a_running_task_is_described_alike(site: Site, tmp_path: Path) -> None:
    args = (str(tmp_path / "ledger"), "label", 1.5)
    found: dict[str, Any] = {}
    for node, queue in ((CELERY_NODE, "controlled-c"), (KW_NODE, "controlled-k")):

        def is_active(node: str = node) -> bool:
            found.update(site.ask("active", [node]))
            return bool(found[node])

        site.clients["celery"].do(
            clients.send, "compat.sleep", args, queue=queue, settings={"result_backend": site.results}
        )
        eventually(is_active, within_s=10)

    theirs, ours = found[CELERY_NODE][0], found[KW_NODE][0]
    asked = site.ask("query_task", [KW_NODE], ids=[ours["id"]])[KW_NODE][ours["id"]]
    assert differences(theirs, ours, "active") == []
    assert theirs["args"] == ours["args"]
    assert asked[0] == "active"
    eventually(lambda: not any(site.ask("active").values()), within_s=10)


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


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "command",
    [("inspect", "-t", "5", "-d", KW_NODE, "ping"), ("inspect", "-t", "5", "-d", KW_NODE, "active_queues")],
)
def test_celerys_command_line_inspects_a_kw_worker(site: Site, command: tuple[str, ...]) -> None:
    done = site.run("celery", "-A", "tests.compat.celery_app", *command)

    assert done.returncode == 0
    assert f"{KW_NODE}: OK" in done.stdout
    assert "1 node online." in done.stdout


def test_celerys_command_line_controls_a_kw_worker(site: Site) -> None:
    done = site.run(
        *("celery", "-A", "tests.compat.celery_app", "control", "-t", "5", "-d", KW_NODE),
        *("time_limit", "compat.total", "9", "10"),
    )

    assert "time limits set successfully" in done.stdout


def test_both_command_lines_know_both_workers(site: Site) -> None:
    celery = site.run("celery", "-A", "tests.compat.celery_app", "status", "-t", "3")
    kw = site.run("kernel_worker.cli", "status", "-A", "tests.compat.celery_app", "-t", "3")

    for node in NODES:
        assert f"{node}: OK" in celery.stdout
        assert f"{node}: OK" in kw.stdout


def test_kws_command_line_inspects_a_celery_worker(site: Site) -> None:
    done = site.run("kernel_worker.cli", "inspect", "-j", "-b", site.url, "-d", CELERY_NODE, "-t", "5", "stats")

    assert json.loads(done.stdout)[CELERY_NODE]["pool"]["max-concurrency"] == 1
