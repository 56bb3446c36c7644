"""A running worker under remote control, on every broker: what is asked, and what is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel_app.exceptions import TaskRevokedError
from kernel_worker.testing import WorkerProcess, eventually

from .conftest import Site

Running = Callable[[str], dict[str, Any]]


def test_a_worker_answers_to_everybody_and_by_name_and_pattern(site: Site) -> None:
    pong = [{site.node: {"ok": "pong"}}]

    assert site.app.control.ping(timeout=2, limit=1) == pong
    assert site.app.control.ping([site.node], timeout=5) == pong
    assert site.app.control.ping(timeout=5, limit=1, pattern="w*@site", matcher="glob") == pong
    assert site.app.control.ping(timeout=5, limit=1, pattern=r"w\d@", matcher="pcre") == pong


def test_a_worker_is_silent_when_others_are_meant(site: Site) -> None:
    control = site.app.control

    assert control.ping(["w2@site"], timeout=0.1) == []
    assert control.ping(timeout=0.1, pattern="x*", matcher="glob") == []
    assert control.inspect("w2@site", timeout=0.1).active() is None


def test_active_shows_a_task_that_runs(site: Site, running: Running, tmp_path: Path) -> None:
    sent = site.send("hold", str(tmp_path), "held")

    shown = running(sent.id)

    assert shown["name"] == shown["type"] == "proj.hold"
    assert (shown["args"], shown["kwargs"], shown["hostname"]) == ([str(tmp_path), "held"], {}, site.node)
    assert isinstance(shown["worker_pid"], int)
    assert isinstance(shown["time_start"], float)
    assert set(shown["delivery_info"]) == {"exchange", "routing_key", "priority", "redelivered"}
    assert site.ask("query_task", ids=[sent.id, "unknown"])[sent.id][0] == "active"
    (tmp_path / "go").touch()
    sent.get(timeout=10)


def test_terminate_ends_a_running_task_and_leaves_the_others(site: Site, running: Running) -> None:
    doomed, other = site.send("sleep", 60), site.send("sleep", 0.5)
    running(doomed.id)

    reply = site.ask("terminate", signal="SIGTERM", task_id=doomed.id)

    assert reply == {"ok": f"terminate: {doomed.id}"}
    with pytest.raises(TaskRevokedError, match="terminated"):
        doomed.get(timeout=10)
    other.get(timeout=10)
    assert site.send("add", 1, 2).get(timeout=10) == 3


def test_time_limits_hold_for_tasks_that_start_afterwards(site: Site) -> None:
    assert site.ask("time_limit", task_name="proj.burn", hard=0.2) == {"ok": "time limits set successfully"}
    limited = site.send("burn", 30)

    with pytest.raises(Exception, match=r"TimeLimitExceeded|0\.2"):
        limited.get(timeout=10)
    site.ask("time_limit", task_name="proj.burn")
    assert site.send("burn", 0.4).get(timeout=10) is None


def test_queues_are_added_and_cancelled_while_running(site: Site) -> None:
    added = f"{site.ask('active_queues')[0]['name']}-added"

    assert site.ask("add_consumer", queue=added) == {"ok": f"add consumer {added}"}
    assert site.send("add", 2, 3, queue=added).get(timeout=10) == 5
    assert site.ask("cancel_consumer", queue=added) == {"ok": f"no longer consuming from {added}"}

    assert added not in [queue["name"] for queue in site.ask("active_queues")]
    assert site.send("add", 2, 4).get(timeout=10) == 6


def test_a_paused_queue_is_not_consumed_from_until_it_is_resumed(site: Site) -> None:
    queue = site.ask("active_queues")[0]["name"]

    def stays(sent: Any) -> bool:
        with contextlib.suppress(TimeoutError):
            sent.get(timeout=0.3)
        return not sent.ready()

    try:
        site.ask("pause", queue=queue)
        eventually(lambda: site.ask("active_queues") == [], within_s=5)
        # those that were asked for before may still come
        eventually(lambda: stays(site.send("add", 0, 0)), within_s=10)
        waiting = site.send("add", 1, 2)
        has_stayed = stays(waiting)
    finally:
        site.ask("resume")

    assert has_stayed
    assert waiting.get(timeout=10) == 3


def test_drain_pauses_every_queue(site: Site) -> None:
    before = [queue["name"] for queue in site.ask("active_queues")]

    reply = site.ask("drain")
    during = site.ask("active_queues")
    site.ask("resume")

    assert reply == {"ok": f"draining; paused: {', '.join(before)}"}
    assert during == []
    assert [queue["name"] for queue in site.ask("active_queues")] == before


def test_the_pool_grows_and_shrinks(site: Site) -> None:
    size = site.ask("stats")["pool"]["max-concurrency"]

    grown = site.ask("pool_grow", n=2)
    eventually(lambda: len(site.ask("stats")["pool"]["processes"]) == size + 2, within_s=10)
    shrunk = site.ask("pool_shrink", n=2)
    eventually(lambda: len(site.ask("stats")["pool"]["processes"]) == size, within_s=10)

    assert grown == {"ok": "pool will grow"}
    assert shrunk == {"ok": "pool will shrink"}


@pytest.mark.parametrize(
    ("command", "arguments", "error"),
    [
        ("nosuch", {}, "unknown command 'nosuch'"),
        ("ping", {"x": 1}, "ping has no argument 'x'"),
        ("time_limit", {}, "time_limit needs the argument 'task_name'"),
        ("time_limit", {"task_name": 5}, "time_limit: task_name must be str, not int"),
        ("time_limit", {"task_name": "nosuch"}, "unknown task"),
        ("time_limit", {"task_name": "proj.add", "soft": 3, "hard": 2}, "would never act"),
        ("pool_grow", {"n": 10**9}, "too many"),
        ("pool_grow", {"n": -1}, "not 1 or more"),
        ("pool_shrink", {"n": 99}, "at least 1"),
        ("autoscale", {"max": 3, "min": 1}, "Autoscale not enabled"),
        ("pool_restart", {}, "Pool restarts not enabled"),
        ("pause", {"queue": "nosuch"}, "does not consume from 'nosuch'"),
        ("terminate", {"signal": "SIGNOSUCH", "task_id": "x"}, "no signal"),
        ("objgraph", {}, "not offered"),
        ("add_consumer", {"queue": ""}, "a queue has a name"),
    ],
)
def test_mistakes_are_answered_with_what_is_wrong(
    site: Site, command: str, arguments: dict[str, Any], error: str
) -> None:
    assert error in site.ask(command, **arguments)["error"]


def test_a_command_that_is_too_large_is_refused_with_its_size(site: Site) -> None:
    reply = site.ask("query_task", ids=["x" * 36] * 40_000)

    assert "bytes, at most" in reply["error"]
    assert site.ask("ping") == {"ok": "pong"}


def test_secrets_are_masked_in_conf_and_stats_and_report(site: Site) -> None:
    shown = str([site.ask("conf"), site.ask("conf", with_defaults=True), site.ask("stats"), site.ask("report")])

    assert "guest:guest" not in shown


def test_the_worker_describes_its_commands(site: Site) -> None:
    described = site.ask("commands")

    assert described["pool_grow"]["permission"] == "operate"
    assert described["shutdown"]["permission"] == "destroy"
    assert described["time_limit"]["arguments"] == {"task_name": "str", "soft": "float", "hard": "float"}


def test_a_name_that_no_queue_can_have_does_not_stop_consumption(own_site: Site) -> None:
    own_site.start("-c", "1")

    own_site.ask("add_consumer", queue="unacked")
    eventually(lambda: "unacked" not in [q["name"] for q in own_site.ask("active_queues")], within_s=5)

    assert own_site.send("add", 1, 1).get(timeout=10) == 2


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads", "gevent", "eventlet", "asyncio"])
def test_ping_is_answered_while_every_slot_computes_and_terminate_ends_it(own_site: Site, pool: str) -> None:
    own_site.start("-P", pool, *([] if pool == "solo" else ["-c", "2"]))
    sent = [own_site.send("burn", 60) for _ in range(1 if pool == "solo" else 2)]
    eventually(lambda: own_site.ask("active") != [], within_s=10)

    for _ in range(3):
        assert own_site.ask("ping") == {"ok": "pong"}
    assert own_site.ask("active") != []
    if pool != "solo":  # a thread of the worker's own process cannot be ended
        own_site.app.control.revoke([each.id for each in sent], terminate=True, reply=True, limit=1, timeout=5)
        for each in sent:
            with pytest.raises(TaskRevokedError):
                each.get(timeout=10)
        assert own_site.send("add", 1, 2).get(timeout=10) == 3


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_neighbours_of_a_task_that_must_be_killed_go_back_uncounted(own_site: Site, pool: str) -> None:
    """The doomed task computes without a pause, so its process is killed, with the others that run there."""
    folder = own_site.folder
    (folder / "kw.toml").write_text("[worker]\nmax_deliveries = 1\n")
    own_site.start("-P", pool, "-c", "1x3")
    neighbours = [own_site.send("hold", str(folder), f"neighbour{number}") for number in range(2)]
    eventually(lambda: len(list(folder.glob("neighbour*"))) == 2, within_s=15)
    doomed = own_site.send("burn", 60)
    eventually(lambda: len(own_site.ask("active")) == 3, within_s=15)

    assert own_site.ask("terminate", signal="SIGTERM", task_id=doomed.id) == {"ok": f"terminate: {doomed.id}"}

    with pytest.raises(TaskRevokedError):
        doomed.get(timeout=20)
    begun_twice = {f"neighbour{number}": "xx" for number in range(2)}
    eventually(lambda: {path.name: path.read_text() for path in folder.glob("neighbour*")} == begun_twice, within_s=20)
    (folder / "go").touch()
    assert [each.get(timeout=20) for each in neighbours] == ["neighbour0", "neighbour1"]


def test_remote_shutdown_ends_the_worker_like_a_signal(own_site: Site) -> None:
    worker = own_site.start("-c", "1")
    sent = own_site.send("hold", str(own_site.folder), "held")
    eventually(lambda: own_site.ask("active") != [], within_s=10)

    assert own_site.app.control.shutdown(reply=True, timeout=0.3) == []

    assert own_site.ask("ping") == {"ok": "pong"}, "it answers until the end"
    (own_site.folder / "go").touch()
    assert worker.wait() == 0
    assert sent.successful()


@pytest.mark.parametrize("level", ["read", "operate"])
def test_commands_above_the_permission_are_refused_and_logged(own_site: Site, level: str) -> None:
    worker = own_site.start("-c", "1", "--control", level)

    refused = own_site.ask("shutdown")
    paused = own_site.ask("drain")

    assert refused == {"error": "shutdown needs the permission 'destroy' (kw run --control destroy)"}
    assert ("error" in paused) == (level == "read")
    assert "command shutdown refused" in worker.output
    assert own_site.ask("ping") == {"ok": "pong"}


def test_off_means_that_nobody_listens(own_site: Site) -> None:
    (own_site.folder / "proj.py").write_text("from kernel_app import App\napp = App('proj')\n")
    worker = WorkerProcess(
        ["run", "-A", "proj", "-b", own_site.broker, "--control", "off", "-c", "1"], cwd=own_site.folder
    )
    own_site.workers.append(worker)
    worker.wait_until_ready()

    assert own_site.app.control.ping(timeout=0.3) == []


def test_no_more_tasks_of_a_queue_run_at_once_than_its_cap(own_site: Site) -> None:
    own_site.start("-c", "4", "-Q", "video=2,mail")
    folder = own_site.folder
    videos = [own_site.send("hold", str(folder), f"video{number}", queue="video") for number in range(6)]
    eventually(lambda: len(own_site.ask("active")) == 2, within_s=10)

    mails = [own_site.send("add", n, 0, queue="mail") for n in range(10)]
    for mail in mails:
        mail.get(timeout=10)

    eventually(lambda: own_site.ask("reserved") == [], within_s=5)  # a result is there before its message is settled
    eventually(lambda: len(own_site.ask("active")) == 2, within_s=5)
    assert len(list(folder.glob("video*"))) == 2
    assert own_site.app.control.ping(timeout=5, limit=1)
    (folder / "go").touch()
    for video in videos:
        video.get(timeout=10)


def test_excluded_queues_are_not_consumed(own_site: Site) -> None:
    text = "from kernel_app import App\napp = App('proj', task_queues={'a': {}, 'b': {}, 'c': {}})\n"
    (own_site.folder / "proj.py").write_text(text)
    command = ["run", "-A", "proj", "-b", own_site.broker, "-c", "1", "-n", own_site.node, "-X", "b,c"]
    worker = WorkerProcess(command, cwd=own_site.folder)
    own_site.workers.append(worker)
    worker.wait_until_ready()
    eventually(lambda: own_site.app.control.ping(timeout=0.5, limit=1), within_s=10)

    assert [queue["name"] for queue in own_site.ask("active_queues")] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("-Q", "a", "-X", "a"), "both asked for (-Q) and left out (-X)"),
        (("-Q", "a=0"), "is not QUEUE or QUEUE=N"),
        (("-X", "celery"), "leaves no queue to consume from"),
    ],
)
def test_impossible_queues_are_refused_at_start(own_site: Site, arguments: tuple[str, ...], error: str) -> None:
    (own_site.folder / "proj.py").write_text("from kernel_app import App\napp = App('proj')\n")
    worker = WorkerProcess(["run", "-A", "proj", "-b", own_site.broker, *arguments], cwd=own_site.folder)
    own_site.workers.append(worker)

    assert worker.wait() in (2, 78)
    assert error in worker.output


def test_a_broker_without_remote_control_is_told_at_start(own_site: Site) -> None:
    (own_site.folder / "proj.py").write_text("from kernel_app import App\napp = App('proj')\n")
    (own_site.folder / "in").mkdir()
    broker = f"filesystem://{own_site.folder}/in"
    worker = WorkerProcess(["run", "-A", "proj", "-b", broker, "-c", "1"], cwd=own_site.folder)
    own_site.workers.append(worker)
    worker.wait_until_ready()

    assert worker.output.count("no remote control on filesystem:") == 1
