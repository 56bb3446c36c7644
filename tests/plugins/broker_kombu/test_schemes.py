"""What is refused at start, what is imported when, and what the README says of each scheme."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import kombu.transport
import pytest

import kernel_broker_kombu
from kernel_broker_kombu import FilesystemBroker, KombuBroker, KombuPublisher, MemoryBroker, SqsBroker, SqsPublisher
from kernel_broker_kombu.schemes import SCHEMES, missing_library
from kernel_worker.drivers import Broker, BrokerContext
from kernel_worker.errors import ConfigError
from kernel_worker.types import BrokerCapability, QueueSpec
from tests.conftest import RunKw

README = Path(kernel_broker_kombu.__file__).parents[2] / "README.md"
OWN = {"filesystem": FilesystemBroker, "memory": MemoryBroker, "sqs": SqsBroker}
ELSEWHERE = {"amqp", "amqps", "pyamqp", "librabbitmq", "redis", "rediss", "sentinel"}
"""Other distributions' schemes."""


def entry_points(group: str) -> dict[str, str]:
    found = importlib.metadata.distribution("kernel-broker-kombu").entry_points
    return {each.name: each.value for each in found if each.group == f"kernel_worker.{group}"}


def test_every_transport_of_kombu_has_a_broker_and_a_publisher() -> None:
    aliases = {alias.lower() for alias in kombu.transport.TRANSPORT_ALIASES} - ELSEWHERE

    assert aliases <= set(entry_points("brokers"))
    assert set(entry_points("brokers")) == set(entry_points("publishers")) == set(SCHEMES) | set(OWN)


def test_readme_tells_the_declared_capabilities_of_every_scheme() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", README.read_text(), flags=re.MULTILINE))

    def declared(name: str) -> str:
        driver: type[Broker] = OWN.get(name, KombuBroker)
        return ", ".join(each.name for each in BrokerCapability if each in driver.capabilities)

    assert rows == {name: declared(name) for name in entry_points("brokers")}


MISSING = sorted(name for name, scheme in SCHEMES.items() if missing_library(scheme))


@pytest.mark.parametrize("name", MISSING)
def test_missing_library_is_told_at_start_with_the_line_that_installs_it(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KombuBroker(BrokerContext(f"{name}://user:secret@localhost"))

    assert "is not installed" in caught.value.message
    assert caught.value.hint.startswith("pip install 'kombu[")
    with pytest.raises(ValueError, match="is not installed"):
        KombuPublisher(f"{name}://user:secret@localhost", {})


@pytest.mark.parametrize("driver", OWN.values())
def test_priorities_are_refused_at_start(driver: type[Broker]) -> None:
    url = {FilesystemBroker: "filesystem:///nowhere", MemoryBroker: "memory://"}.get(driver, "sqs://")

    with pytest.raises(ConfigError, match="asks for priorities"):
        driver(BrokerContext(url, queues=(QueueSpec("q", arguments={"x-max-priority": 10}),)))


@pytest.mark.parametrize(("driver", "url"), [(MemoryBroker, "memory://"), (SqsBroker, "sqs://")])
def test_exchange_types_a_transport_does_not_have_are_refused_at_start(driver: type[Broker], url: str) -> None:
    with pytest.raises(ConfigError, match="headers exchange"):
        driver(BrokerContext(url, queues=(QueueSpec("q", "e", "headers"),)))


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("sqs://KEY:hun/ter2@", {}, "percent-encoded"),
        ("sqs://", {"sts_role_arn": "arn:x"}, "sts_role_arn is not supported"),
        ("sqs://", {"predefined_queues": {"q": {}}}, "has no url"),
        ("sqs://", {"predefined_queues": {"q": {"url": "https://x/q.fifo"}}}, "must both end"),
    ],
)
def test_wrong_sqs_settings_are_refused_without_showing_secrets(
    url: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        SqsBroker(BrokerContext(url, options=options))
    with pytest.raises(ValueError, match=words):
        SqsPublisher(url, options)

    assert "ter2" not in caught.value.message


def test_memory_is_refused_with_a_pool_that_runs_tasks_elsewhere(kw: RunKw, tmp_path: Path) -> None:
    (tmp_path / "mem.py").write_text("from kernel_app import App\napp = App('mem')\n")

    worker = kw("run", "-A", "mem", "-b", "memory://", "-c", "1", ready=False)

    assert worker.wait() == 2
    assert "keeps messages in the worker's own process" in worker.output
    assert "-P solo" in worker.output


def test_solo_worker_runs_what_is_sent_from_inside_through_memory(kw: RunKw, tmp_path: Path) -> None:
    (tmp_path / "mem.py").write_text(
        "import threading\n"
        "from kernel_app import App\n"
        "app = App('mem', broker_url='memory://')\n"
        "@app.task(name='count')\n"
        "def count(n):\n"
        "    print('count', n, flush=True)\n"
        "    if n: count.delay(n - 1)\n"
        "threading.Timer(0.2, count.delay, (2,)).start()\n"
    )

    worker = kw("run", "-A", "mem", "-P", "solo", "-b", "memory://", "--result-backend", "disabled://")

    worker.wait_for_output("count 0")
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("kernel_broker_kombu.filesystem.publisher", {"kernel_worker", "kombu", "boto3"}),
        ("kernel_broker_kombu.sqs.publisher", {"kernel_worker", "kombu", "boto3", "botocore"}),
        ("kernel_broker_kombu.publisher", {"kernel_worker", "kombu"}),
        ("kernel_broker_kombu.filesystem.broker", {"kombu", "boto3"}),
        ("kernel_broker_kombu.sqs.broker", {"kombu", "boto3", "botocore"}),
        ("kernel_broker_kombu.transport", {"kombu", "boto3"}),
    ],
)
def test_module_imports_no_library_before_it_connects(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not absent & set(run.stdout.split())
