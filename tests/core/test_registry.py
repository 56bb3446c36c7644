"""Discovery and loading: what is imported when, and what a broken plugin looks like."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_worker.drivers import ControlCommand
from kernel_worker.errors import PluginError
from kernel_worker.registry import Command, HealthCheck, Registry
from tests.core.fake_distributions import BROKER, Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path).alone() as site:
        yield site


def test_discovery_imports_no_plugin(site: Site) -> None:
    site.standard()
    site.plugin("loud", "raise RuntimeError('imported')")

    registry = Registry.discover()
    registry.select("prefork,redis")

    assert registry.names == {"app", "loud", "native", "prefork", "redis", "rediss", "solo", "sqlite"}
    assert not [name for name in sys.modules if name.startswith("fake_")]


def test_entries_know_where_they_come_from(site: Site) -> None:
    site.pool("prefork")

    entry = Registry.discover().entries["pools"]["prefork"]

    assert (entry.distribution, entry.version) == ("kernel-pool-prefork", "1.0")
    assert entry.target == "fake_pool_prefork:Driver"
    assert str(entry) == "prefork (kernel-pool-prefork 1.0)"


def test_groups_of_others_are_left_alone(site: Site) -> None:
    site.install("other", {"poolz": {"x": "y:z"}})

    assert Registry.discover().names == frozenset()


def test_only_the_chosen_driver_is_imported(site: Site) -> None:
    site.standard()
    registry = Registry.discover()
    selection = registry.select()

    pool = registry.load_pool(selection, "solo")
    broker = registry.load_broker(selection, "sqlite:///x.db")

    assert pool.name == "solo"
    assert broker.__module__ == "fake_broker_sqlite"
    assert {name for name in sys.modules if name.startswith("fake_")} == {"fake_pool_solo", "fake_broker_sqlite"}


def test_executors_are_told_import_strings(site: Site) -> None:
    site.standard()
    registry = Registry.discover()
    selection = registry.select("prefork,redis")

    assert registry.import_strings(selection, "results") == {
        "redis": "fake_results_redis:Driver",
        "rediss": "fake_results_redis:Driver",
    }
    assert registry.import_strings(selection, "apps") == {"native": "fake_native_loader:Loader"}
    assert registry.import_strings(selection, "executor") == {}


def test_a_driver_that_fails_to_import_is_named_with_the_cause(site: Site) -> None:
    site.install("kernel-pool-bad", {"pools": {"bad": "fake_bad:Driver"}}, {"fake_bad": "import no_such_module\n"})
    registry = Registry.discover()

    with pytest.raises(PluginError) as failed:
        registry.load_pool(registry.select(), "bad")

    assert failed.value.message == (
        "plugin bad (kernel-pool-bad 1.0) in kernel_worker.pools cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert failed.value.hint == "mend it, or leave it out: --plugins=-bad"
    assert isinstance(failed.value.__cause__, ModuleNotFoundError)
    assert failed.value.exit_code == 78


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("assert False, 'no'", "AssertionError: no"),
        ("x = 1", "AttributeError"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_whatever_an_import_raises_is_a_plugin_error(site: Site, source: str, cause: str) -> None:
    site.install("kernel-pool-bad", {"pools": {"bad": "fake_bad:Driver"}}, {"fake_bad": source})
    registry = Registry.discover()

    with pytest.raises(PluginError) as failed:
        registry.load_pool(registry.select(), "bad")

    assert cause in failed.value.message


@pytest.mark.parametrize(
    ("line", "says"),
    [("api = 2", "was written for API 2; this kernel has API 1"), ("api = None", "does not say for which API")],
)
def test_a_driver_of_another_api_is_refused(site: Site, line: str, says: str) -> None:
    site.broker("redis", source=BROKER.replace("pass", line))
    registry = Registry.discover()

    with pytest.raises(PluginError) as refused:
        registry.load_broker(registry.select(), "redis://h")

    assert f"plugin redis (kernel-broker-redis 1.0) {says}" in refused.value.message
    assert refused.value.hint == "pip install -U kernel-broker-redis"


def test_control_commands_are_loaded_by_name(site: Site) -> None:
    source = "from kernel_worker import ControlCommand\nzap = ControlCommand('zap', print)\nask = ControlCommand('ask', print)\n"
    site.install("kernel-zap", {"control": {"zap": "fake_zap:zap", "ask": "fake_zap:ask"}}, {"fake_zap": source})
    registry = Registry.discover()

    commands = registry.control_commands(registry.select())

    assert [command.name for command in commands] == ["ask", "zap"]
    assert all(isinstance(command, ControlCommand) for command in commands)


def test_a_control_command_that_is_none_is_refused(site: Site) -> None:
    site.install("kernel-zap", {"control": {"zap": "fake_zap:zap"}}, {"fake_zap": "zap = 3\n"})
    registry = Registry.discover()

    with pytest.raises(PluginError, match=r"control command zap \(kernel-zap 1\.0\) is 3, not a ControlCommand"):
        registry.control_commands(registry.select())


@pytest.mark.parametrize(
    ("kind", "source", "text"),
    [
        ("pools", "class Driver: api = 7", "was written for API 7"),
        ("brokers", "class Driver: pass", "does not say for which API"),
        ("apps", "raise ImportError('x')", "ImportError: x"),
        ("plugins", "kw_api = 9\nclass Driver: kw_api = 9", "was written for API 9"),
        ("control", "Driver = 1", "not a ControlCommand"),
    ],
)
def test_check_finds_what_using_an_entry_would_raise(site: Site, kind: str, source: str, text: str) -> None:
    site.install("bad", {kind: {"bad": "fake_bad:Driver"}}, {"fake_bad": source})
    registry = Registry.discover()

    with pytest.raises(PluginError) as failed:
        registry.check(registry.entries[kind]["bad"])

    assert text in failed.value.message


def test_check_is_content_with_sound_entries(site: Site) -> None:
    site.standard()
    registry = Registry.discover()

    for entry in [
        *registry.select().pools.values(),
        *registry.select().brokers.values(),
        *registry.select().plugins.values(),
    ]:
        registry.check(entry)


def test_plugin_modules_are_loaded_with_their_names(site: Site) -> None:
    site.plugin("events", "")
    site.plugin("audit", "")
    registry = Registry.discover()

    hooks = registry.load_plugins(registry.select(), builtin=False)

    assert hooks.plugins == ["audit", "events"]


def test_the_kernels_own_steps_are_asked_last(site: Site) -> None:
    site.plugin("zeta", "")
    registry = Registry.discover()

    assert registry.load_plugins(registry.select()).plugins == ["zeta", "builtin"]


def test_records_are_cheap_to_import() -> None:
    """Plugins import `Command` from here; that must not cost them stevedore, pluggy or importlib.metadata."""
    program = (
        "import sys; from kernel_worker.registry import Command, HealthCheck; "
        "print([m for m in ('stevedore', 'pluggy', 'click', 'importlib.metadata') if m in sys.modules])"
    )

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
    assert Command("call", "a:b").help == ""
    assert HealthCheck("disk", lambda: "full").check() == "full"
