"""`kw run --plugins prefork,amqp,rpc`: the example, ETA, bad messages."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel_app import App
from kernel_broker_amqp.broker import AmqpBroker
from kernel_worker import BrokerContext, BrokerRefused
from kernel_worker.testing import Ledger, envelope, eventually
from tests.conftest import RunKw
from tests.e2e.bad_messages import DEAD, EXPLODED
from tests.e2e.environments import ROOT, clean_environ

PLUGINS = ("--plugins", "prefork,amqp,rpc", "-P", "prefork")
VICTIM = """
import time
from kernel_app import App
from kernel_worker.testing import Ledger
app = App("victim", result_backend=None)
@app.task
def add(x, y):
    Ledger("ledger").note("ran", id=x)
    return x + y
"""
QUEUE = "celery"


def test_client_gets_the_index_of_a_folder(kw: RunKw, tmp_path: Path, amqp_url: str) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for n in range(20):
        (tree / f"file{n:02}.txt").write_text("alpha beta\n" * (n + 1))
    options = ("-A", "examples.textindex.app", "-b", amqp_url, "--result-backend", "rpc://")
    worker = kw("run", *PLUGINS, *options, "--workdir", str(ROOT))

    done = subprocess.run(
        [sys.executable, "-m", "examples.textindex.run", "-b", amqp_url, "--result-backend", "rpc://", str(tree)],
        cwd=ROOT,
        env=clean_environ(),
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "files 20 lines 210 words 420" in " ".join(done.stdout.split())
    assert worker.stop() == 0


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_countdowns_start_soon_after_their_time(
    kw: RunKw, tmp_path: Path, amqp_url: str, ledger: Ledger, queue_type: str
) -> None:
    (tmp_path / "victim.py").write_text(VICTIM)
    settings = {"task_default_queue_type": queue_type}
    with_type = VICTIM.replace("result_backend=None", f"result_backend=None, **{settings!r}")
    (tmp_path / "victim.py").write_text(with_type)
    kw("run", *PLUGINS, "-A", "victim", "-b", amqp_url, "-c", "2")
    client = App("client", broker_url=amqp_url, result_backend=None, **settings)
    client.send_task("victim.add", (98, 1))  # opens the connection, which takes its time
    due = {}
    for n, seconds in enumerate((0.1, 0.6, 1.3, 2.2, 3.1)):
        due[n] = time.time() + seconds
        client.send_task("victim.add", (n, 1), countdown=seconds)
    client.send_task("victim.add", (99, 1))

    eventually(lambda: ledger.count("ran") == 7, within_s=20, message=lambda: str(ledger.entries()))
    client.close()

    started = {entry["id"]: entry["at"] for entry in ledger.entries("ran")}
    assert started[99] < due[4]
    assert {n: started[n] - at for n, at in due.items() if not 0 <= started[n] - at < 3.0} == {}


@pytest.mark.timeout(180)
def test_bad_messages_are_kept_and_good_ones_run(kw: RunKw, tmp_path: Path, amqp_url: str, ledger: Ledger) -> None:
    """Every one that AMQP can carry, among good ones; the worker's processes stay the same."""
    (tmp_path / "victim.py").write_text(VICTIM)
    options = ("-A", "victim", "-b", amqp_url, "-c", "2", "-l", "error")
    worker = kw("run", *PLUGINS, *options, env={"KW_UNKNOWN_MAX_RETURNS": "0"})
    broker = AmqpBroker(BrokerContext(amqp_url))
    broker.connect()
    broker.declare(broker.context.queues)
    eventually(lambda: len(worker.family()) == 4, message="worker, fork server and two executors")
    family = worker.family()
    sent = 0

    for n, (name, (make, _, _)) in enumerate(DEAD.items()):
        broker.publish(QUEUE, envelope("victim.add", (n, 1)))
        if name != "body of 100 MB":
            sent += _is_sent(lambda make=make: broker.publish(QUEUE, make(str(uuid.uuid4()))))
    # What is wrong with a few of them gets lost on the way into AMQP: these run.
    eventually(
        lambda: broker.size(QUEUE).dead + ledger.count("ran") == sent + len(DEAD),
        within_s=60,
        message=lambda: f"{sent} sent, {broker.size(QUEUE)}",
    )

    letters = broker.dead_letters(QUEUE, limit=200)
    assert len(letters) > 80
    assert all(letter.reason and letter.reason.isprintable() and len(letter.reason) < 300 for letter in letters)
    assert {entry["id"] for entry in ledger.entries("ran")} >= set(range(len(DEAD)))
    eventually(lambda: worker.family() == family, message=lambda: f"{worker.family()} to be {family} again")
    assert not (tmp_path / EXPLODED).exists()
    broker.close()
    assert worker.stop() == 0


def _is_sent(send: Callable[[], None]) -> bool:
    try:
        send()
    except BrokerRefused:  # headers that AMQP cannot carry
        return False
    return True
