"""What `--plugins`, `-P` and URLs select, and the error for everything that cannot be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel_worker.errors import UsageError
from kernel_worker.registry import Registry
from kernel_worker.selection import Selection
from tests.core.fake_distributions import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path).alone() as site:
        yield site


@pytest.fixture
def registry(site: Site) -> Registry:
    site.standard()
    site.plugin("events", "")
    return Registry.discover()


def names(selection: Selection) -> set[str]:
    return {f"{entry.kind}:{entry.name}" for entry in selection if entry.kind != "publishers"}


LOADER = {"apps:native", "plugins:app"}
POOLS = {"pools:prefork", "pools:solo"}
REDIS = {"brokers:redis", "brokers:rediss", "results:redis", "results:rediss"}
SQLITE = {"brokers:sqlite", "results:sqlite"}
EVERYTHING = LOADER | POOLS | REDIS | SQLITE | {"plugins:events"}


@pytest.mark.parametrize(
    ("asked", "selected"),
    [
        (None, EVERYTHING),
        ("", EVERYTHING),
        ("all", EVERYTHING),
        ("prefork,redis", LOADER | {"pools:prefork"} | REDIS),
        ("prefork redis", LOADER | {"pools:prefork"} | REDIS),
        ("prefork,sqlite,events", LOADER | {"pools:prefork"} | SQLITE | {"plugins:events"}),
        ("prefork,brokers:redis", LOADER | {"pools:prefork", "brokers:redis", "brokers:rediss"}),
        ("prefork,kernel_worker.results:sqlite", LOADER | {"pools:prefork", "results:sqlite"}),
        ("-events", EVERYTHING - {"plugins:events"}),
        ("-events,-solo", EVERYTHING - {"plugins:events", "pools:solo"}),
        ("-results:redis", EVERYTHING - {"results:redis", "results:rediss"}),
        ("+events", EVERYTHING),
        ("all,-redis", EVERYTHING - REDIS),
        ("prefork,redis,-app", (LOADER | {"pools:prefork"} | REDIS) - {"plugins:app"}),
        ("prefork,redis,-native,-app", {"pools:prefork"} | REDIS),
        ("-events,+events", EVERYTHING),
        ("prefork,+events", LOADER | {"pools:prefork", "plugins:events"}),
    ],
)
def test_plugins_select(registry: Registry, asked: str | None, selected: set[str]) -> None:
    assert names(registry.select(asked)) == selected


def test_a_name_selects_the_publisher_too(registry: Registry) -> None:
    selection = registry.select("prefork,redis")

    assert set(selection.publishers) == {"redis", "rediss"}


def test_standard_is_what_the_distribution_kernel_worker_brings(site: Site) -> None:
    site.standard()
    site.plugin("extra", "", "somebodys-extra")
    site.install(
        "kernel-worker", {}, requires=("kernel_pool_prefork>=0.1,<0.2", "kernel-broker-sqlite (>=0.1)", "kernel-app")
    )

    selection = Registry.discover().select("standard")

    assert names(selection) == LOADER | {"pools:prefork", "brokers:sqlite"}


def test_standard_needs_the_distribution_kernel_worker(registry: Registry) -> None:
    with pytest.raises(UsageError) as refused:
        registry.select("standard")

    assert refused.value.hint == "pip install kernel-worker"


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        (
            "gevent",
            "no plugin named 'gevent' is installed (have: app, events, native, prefork, redis, rediss, solo, sqlite)",
            "pip install kernel-pool-gevent",
        ),
        ("gevnt", "Did you mean 'gevent'?", "pip install kernel-pool-gevent"),
        ("amqp", "no plugin named 'amqp'", "pip install kernel-broker-amqp"),
        ("control", "no plugin named 'control'", "pip install kernel-control"),
        ("prefrok", "Did you mean 'prefork'?", ""),
        ("-evnets", "Did you mean 'events'?", ""),
        ("weather", "no plugin named 'weather' is installed", "pip install kernel-weather"),
        (
            "pools:weather",
            "no pool named 'weather' is installed (have: prefork, solo)",
            "pip install kernel-pool-weather",
        ),
        ("pools:redis", "no pool named 'redis' is installed", "pip install kernel-pool-redis"),
        ("pool:prefork", "no kind of plugin is called 'pool'", ""),
        ("pool:prefork", "Did you mean pools:prefork?", ""),
        ("prefork,,redis,gevent", "no plugin named 'gevent'", "pip install kernel-pool-gevent"),
    ],
)
def test_unknown_names_are_usage_errors(registry: Registry, asked: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as refused:
        registry.select(asked)

    assert message in refused.value.message
    assert refused.value.hint == hint
    assert refused.value.exit_code == 2


# --------------------------------------------------------------------------- the pool


@pytest.mark.parametrize(
    ("asked", "wanted", "pool"),
    [
        (None, None, "prefork"),
        (None, "solo", "solo"),
        ("solo,redis", None, "solo"),
        ("prefork,solo,redis", "solo", "solo"),
        ("all", None, "prefork"),
        ("all,solo", None, "solo"),
        ("-events", None, "prefork"),
        ("-prefork", None, "solo"),
    ],
)
def test_pool_is_chosen(registry: Registry, asked: str | None, wanted: str | None, pool: str) -> None:
    assert registry.choose_pool(registry.select(asked), wanted) == pool


def test_without_prefork_the_only_pool_is_chosen(site: Site) -> None:
    site.pool("threads")

    registry = Registry.discover()

    assert registry.choose_pool(registry.select(), None) == "threads"


@pytest.mark.parametrize(
    ("asked", "wanted", "message", "hint"),
    [
        (
            None,
            "gevnt",
            "no pool named 'gevnt' is installed (have: prefork, solo). Did you mean 'gevent'?",
            "pip install kernel-pool-gevent",
        ),
        (
            None,
            "weather",
            "no pool named 'weather' is installed (have: prefork, solo)",
            "pip install kernel-pool-weather",
        ),
        (None, "sollo", "no pool named 'sollo' is installed (have: prefork, solo). Did you mean 'solo'?", ""),
        (
            "prefork,solo,redis",
            None,
            "--plugins prefork,solo,redis selects 2 pools: prefork, solo",
            "choose one: -P prefork",
        ),
        (
            "prefork,redis",
            "solo",
            "--plugins prefork,redis leaves out the pool 'solo' (installed: prefork, solo)",
            "add it: --plugins prefork,redis,solo",
        ),
        ("-solo", "solo", "--plugins -solo leaves out the pool 'solo' (installed: prefork, solo)", "take -solo away"),
        (
            "redis",
            None,
            "--plugins redis selects no pool (installed: prefork, solo)",
            "add it: --plugins redis,prefork",
        ),
    ],
)
def test_pool_that_cannot_be_chosen_is_a_usage_error(
    registry: Registry, asked: str | None, wanted: str | None, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        registry.choose_pool(registry.select(asked), wanted)

    assert refused.value.message == message
    assert refused.value.hint == hint
    assert refused.value.exit_code == 2


def test_two_pools_of_strangers_need_a_choice(site: Site) -> None:
    site.pool("swift")
    site.pool("sure")

    registry = Registry.discover()
    with pytest.raises(UsageError) as refused:
        registry.choose_pool(registry.select(), None)

    assert refused.value.message == "there are 2 pools: sure, swift"
    assert refused.value.hint == "choose one: -P sure"


# --------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "distribution"),
    [
        ("redis://h/0", "kernel-broker-redis"),
        ("REDISS://h/0", "kernel-broker-redis"),
        ("redis+socket:///run/redis.sock", "kernel-broker-redis"),
        ("sqlite:///kw.db", "kernel-broker-sqlite"),
    ],
)
def test_broker_is_chosen_by_scheme(registry: Registry, url: str, distribution: str) -> None:
    assert registry.broker_entry(registry.select(), url).distribution == distribution


@pytest.mark.parametrize(
    ("asked", "url", "message", "hint"),
    [
        (
            None,
            "amqp://u:hunter2@h",
            "no broker named 'amqp' is installed (have: redis, rediss, sqlite)",
            "pip install kernel-broker-amqp",
        ),
        (
            None,
            "pyamqp://",
            "no broker named 'pyamqp' is installed (have: redis, rediss, sqlite)",
            "pip install kernel-broker-amqp",
        ),
        (
            None,
            "sqs://k:hunter2@",
            "no broker named 'sqs' is installed (have: redis, rediss, sqlite)",
            "pip install 'kernel-broker-kombu[sqs]'",
        ),
        (
            None,
            "weather://h",
            "no broker named 'weather' is installed (have: redis, rediss, sqlite)",
            "pip install kernel-broker-weather",
        ),
        (
            None,
            "rdis://:hunter2@h",
            "no broker named 'rdis' is installed (have: redis, rediss, sqlite). Did you mean 'redis'?",
            "",
        ),
        (
            "prefork,sqlite",
            "redis://:hunter2@h/0",
            "--plugins prefork,sqlite leaves out the broker 'redis', which redis://:**@h/0 needs",
            "add it: --plugins prefork,sqlite,redis",
        ),
        (
            "-redis",
            "redis://h/0",
            "--plugins -redis leaves out the broker 'redis', which redis://h/0 needs",
            "take -redis away",
        ),
        (None, "localhost:hunter2", "the broker URL '**' has no scheme", "example: redis://localhost:6379/0"),
    ],
)
def test_broker_url_without_a_driver_is_a_usage_error(
    registry: Registry, asked: str | None, url: str, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as refused:
        registry.broker_entry(registry.select(asked), url)

    assert refused.value.message == message
    assert refused.value.hint == hint
    assert "hunter2" not in str(refused.value)


def test_result_url_without_a_driver_is_a_usage_error(registry: Registry) -> None:
    with pytest.raises(UsageError) as unknown:
        registry.result_entry(registry.select(), "mongodb://h")
    with pytest.raises(UsageError) as left_out:
        registry.result_entry(registry.select("prefork,sqlite"), "redis://h")

    assert unknown.value.message == "no result backend named 'mongodb' is installed (have: redis, rediss, sqlite)"
    assert unknown.value.hint == "pip install kernel-result-mongodb"
    assert "leaves out the result backend 'redis', which redis://h needs" in left_out.value.message


# --------------------------------------------------------------------------- what every worker needs


def test_the_core_alone_says_what_is_missing(site: Site) -> None:
    registry = Registry.discover()

    with pytest.raises(UsageError) as refused:
        registry.require_runnable(registry.select())

    assert str(refused.value) == (
        "this is the kernel alone: no pool, no broker, no application loader is installed\n    pip install kernel-worker"
    )


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("pool", "no pool is installed"),
        ("broker", "no broker is installed"),
        ("loader", "no application loader is installed"),
    ],
)
def test_what_is_not_installed_is_named(site: Site, missing: str, message: str) -> None:
    if missing != "pool":
        site.pool("prefork")
    if missing != "broker":
        site.broker("redis")
    if missing != "loader":
        site.loader()
    registry = Registry.discover()

    with pytest.raises(UsageError) as refused:
        registry.require_runnable(registry.select())

    assert refused.value.message == message
    assert refused.value.hint == "pip install kernel-worker"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("prefork", "--plugins prefork selects no broker (installed: redis, rediss, sqlite)"),
        ("prefork,redis,-native", "--plugins prefork,redis,-native selects no application loader (installed: native)"),
    ],
)
def test_a_selection_that_makes_no_worker_is_refused(registry: Registry, asked: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        registry.require_runnable(registry.select(asked))

    assert refused.value.message == message


# --------------------------------------------------------------------------- two that claim one name


def test_one_name_in_two_distributions_is_a_usage_error(registry: Registry, site: Site) -> None:
    site.install("rival-redis", {"brokers": {"redis": "rival:Driver"}})
    registry = Registry.discover()

    with pytest.raises(UsageError) as refused:
        registry.select()

    assert refused.value.message == (
        "two distributions claim the name 'redis' in kernel_worker.brokers: kernel-broker-redis and rival-redis"
    )
    assert refused.value.hint == "pip uninstall rival-redis"


def test_a_double_claim_does_not_matter_where_it_is_not_selected(registry: Registry, site: Site) -> None:
    site.install("rival-redis", {"brokers": {"redis": "rival:Driver"}})
    registry = Registry.discover()

    selection = registry.select("prefork,sqlite")

    assert set(selection.brokers) == {"sqlite"}


def test_the_first_of_two_installations_of_a_distribution_counts(site: Site, tmp_path: Path) -> None:
    behind = tmp_path / "behind"
    site.pool("prefork")
    site.install("kernel-pool-prefork", {"pools": {"gone": "gone:Driver"}}, version="0.9", folder=behind)
    sys.path.append(str(behind))

    registry = Registry.discover()

    assert set(registry.entries["pools"]) == {"prefork"}
    assert registry.entries["pools"]["prefork"].version == "1.0"
