"""`kw`: commands, two-pass parsing, error texts and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kernel_worker.worker
from kernel_worker.cli import main
from kernel_worker.config import Config, Secret
from kernel_worker.hooks import Hooks
from kernel_worker.registry import Registry
from kernel_worker.selection import Selection
from tests.core.fake_distributions import Site

HEALTH = """
    from dataclasses import dataclass
    from kernel_worker import ConfigError, option

    @dataclass(frozen=True, slots=True)
    class HealthOptions:
        port: int | None = option(None, "--health-port", help="Where to answer.")

    @hookimpl
    def kw_options():
        return HealthOptions

    @hookimpl
    def kw_configure(draft):
        if draft.get("health", "port") == 0:
            raise ConfigError("health: port 0 is not a port", hint="use --health-port 8080")
"""
COMMANDS = """
    from kernel_worker.registry import Command

    @hookimpl
    def kw_commands():
        return [Command("greet", "fake_greeting:greet", "Say hello.")]
"""
GREETING = """
    import click

    @click.command()
    @click.argument("whom")
    def greet(whom):
        click.echo(f"hello {whom}")
"""


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of the person who runs the tests: neither variables nor files."""
    for name in list(os.environ):
        if name.startswith("KW_"):
            monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    with Site(folder).alone() as site:
        site.standard()
        yield site


class Started:
    """What `kw run` composed."""

    config: Config
    registry: Registry
    selection: Selection
    hooks: Hooks


@pytest.fixture
def started(site: Site, monkeypatch: pytest.MonkeyPatch) -> Started:
    """Takes the place of the worker, and remembers what it would have run."""
    seen = Started()

    def run(config: Config, registry: Registry, selection: Selection, hooks: Hooks, prestarted: object = None) -> int:
        seen.config, seen.registry, seen.selection, seen.hooks = config, registry, selection, hooks
        return 7

    monkeypatch.setattr(kernel_worker.worker, "run", run)
    return seen


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


# --------------------------------------------------------------------------- kw run


def test_run_composes_and_returns_the_workers_exit_code(started: Started) -> None:
    code = main(
        [
            *"run -A proj -b redis://:hunter2@h/0 -c 3 -Q a,b -n w1@%h -l INFO -P solo".split(),
            "--solo-depth",
            "9",
            "--purge",
        ]
    )

    assert code == 7
    worker = started.config.worker
    assert (worker.app, worker.concurrency, worker.queues, worker.purge) == ("proj", 3, ("a", "b"), True)
    assert (worker.loglevel, worker.hostname, worker.pool) == ("info", "w1@%h", "solo")
    assert worker.broker == Secret("redis://:hunter2@h/0")
    assert started.config.section("solo").depth == 9
    assert started.hooks.plugins == ["app", "builtin"]
    assert "prefork" not in started.config


def test_run_without_a_pool_names_the_default_one(started: Started) -> None:
    main(["run"])

    assert started.config.worker.pool == "prefork"
    assert started.config.with_settings({}).worker.pool == "prefork"
    assert started.config.section("prefork").depth == 1


def test_run_takes_the_selection_from_environment_and_file(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KW_PLUGINS", "solo,prefork,redis")
    Path("kw.toml").write_text("[worker]\npool = 'solo'\n[solo]\ndepth = 4\n[prefork]\nunread = 1\n")

    main(["run"])

    assert started.config.worker.pool == "solo"
    assert started.config.section("solo").depth == 4
    assert set(started.selection.pools) == {"prefork", "solo"}
    assert set(started.selection.brokers) == {"redis", "rediss"}


def test_run_accepts_options_of_selected_plugins(started: Started, site: Site) -> None:
    site.plugin("health", HEALTH)

    main(["run", "--health-port", "8080"])

    assert started.config.section("health").port == 8080
    assert started.config.source("health", "port") == "command line"


def test_run_lets_plugins_refuse_the_configuration(
    started: Started, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.plugin("health", HEALTH)

    code = main(["run", "--health-port=0"])

    assert code == 78
    assert complaint(capsys) == "kw: health: port 0 is not a port\n    use --health-port 8080\n"


def test_run_does_not_know_options_of_plugins_that_are_not_selected(
    started: Started, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.plugin("health", HEALTH)

    code = main(["run", "--plugins", "prefork,redis", "--health-port", "8080"])

    assert code == 2
    assert "kw: no option --health-port" in complaint(capsys)


def test_run_reads_the_file_it_is_told_to(started: Started, tmp_path: Path) -> None:
    (tmp_path / "staging.toml").write_text("[worker]\ngrace = 3\n")

    main(["run", "--config", str(tmp_path / "staging.toml")])

    assert started.config.worker.grace == 3.0


def test_run_changes_to_the_folder_first(started: Started, tmp_path: Path) -> None:
    (tmp_path / "here" / "app").mkdir()
    (tmp_path / "here" / "app" / "kw.toml").write_text("[worker]\ngrace = 3\n")

    main(["run", "--workdir", "app"])

    assert Path.cwd() == tmp_path / "here" / "app"
    assert started.config.worker.grace == 3.0
    assert started.config.worker.workdir == str(tmp_path / "here" / "app")


def test_run_takes_the_folder_from_the_file(started: Started, tmp_path: Path) -> None:
    (tmp_path / "here" / "app").mkdir()
    Path("kw.toml").write_text("[worker]\nworkdir = 'app'\n")

    main(["run"])

    assert Path.cwd() == tmp_path / "here" / "app"
    assert started.config.source("worker", "workdir") == "kw.toml"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ("run -c many", 2, "kw: worker.concurrency: 'many' is not a number (command line -c)\n"),
        ("run -n w@%x", 2, "has the unknown key '%x'"),
        ("run --grace soon", 2, "worker.grace: 'soon' is not a duration"),
        ("run --time-limit 5 --soft-time-limit 6", 78, "soft_time_limit 6 s lies above time_limit 5 s"),
        ("run -P gevnt", 2, "Did you mean 'gevent'?\n    pip install kernel-pool-gevent\n"),
        ("run --plugins prefork,solo,redis", 2, "selects 2 pools: prefork, solo\n    choose one: -P prefork\n"),
        ("run --plugins prefork,redis -P solo", 2, "add it: --plugins prefork,redis,solo\n"),
        ("run --plugins amqp", 2, "pip install kernel-broker-amqp\n"),
        ("run --plugins prefork", 2, "selects no broker"),
        ("run --workdir absent", 2, "kw: cannot change to the folder absent: No such file or directory\n"),
        ("run --config absent.toml", 78, "kw: no configuration file at "),
        ("run --nonsense", 2, "kw: no option --nonsense"),
        ("run --nonsense", 2, "see kw run --help"),
        ("run --concurency 2", 2, "kw: no option --concurency. Did you mean --concurrency?"),
        ("run -P", 2, "requires an argument"),
        ("run surplus", 2, "kw: Got unexpected extra argument (surplus)"),
        ("rnu", 2, "kw: no command named 'rnu' (have: dead, plugins, purge, queues, report, run). Did you mean 'run'?"),
        ("-A proj run", 2, "options come after the command: kw run -A …"),
    ],
)
def test_mistakes_end_with_one_line_a_hint_and_a_code(
    started: Started, capsys: pytest.CaptureFixture[str], args: str, code: int, text: str
) -> None:
    assert main(args.split()) == code

    told = complaint(capsys)
    assert text in told
    assert "Traceback" not in told
    assert not hasattr(started, "config")


def test_a_plugin_that_cannot_be_imported_ends_the_start(
    started: Started, site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.plugin("broken", "import no_such_module")

    code = main(["run"])

    assert code == 78
    assert "plugin broken (kernel-broken 1.0) in kernel_worker.plugins cannot be imported" in complaint(capsys)


def test_a_broken_plugin_can_be_left_out(started: Started, site: Site) -> None:
    site.plugin("broken", "import no_such_module")

    assert main(["run", "--plugins", "-broken"]) == 7


def test_two_options_of_one_name_are_refused(started: Started, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("health", HEALTH.replace("--health-port", "--grace"))

    assert main(["run"]) == 78
    assert "kw: health and worker both have an option --grace" in complaint(capsys)


def test_a_traceback_is_shown_on_request(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernel_worker.errors import UsageError

    monkeypatch.setenv("KW_TRACEBACK", "1")

    with pytest.raises(UsageError):
        main(["run", "-P", "absent"])


# --------------------------------------------------------------------------- help


def test_help_of_run_shows_options_by_plugin(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("health", HEALTH)

    code = main(["run", "--help"])

    told = capsys.readouterr().out
    assert code == 0
    assert "Options of pool prefork:\n  --prefork-depth" in told
    assert "Options of health (kernel-health 1.0):\n  --health-port" in told
    for flag in "--app --broker --result-backend --pool --concurrency --queues --hostname --loglevel --logfile".split():
        assert flag in told
    for flag in "--plugins --prefetch-multiplier --grace --purge --pidfile --lease --workdir --config".split():
        assert flag in told


def test_help_of_run_follows_the_pool(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "-P", "solo", "--help"])

    told = capsys.readouterr().out
    assert "Options of pool solo:\n  --solo-depth" in told
    assert "--prefork-depth" not in told


def test_help_is_given_even_for_a_selection_that_fails(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["run", "--plugins", "gevent", "--help"])

    told = capsys.readouterr().out
    assert code == 0
    assert "--concurrency" in told
    assert "Without the options of plugins: no plugin named 'gevent' is installed" in told


def test_help_lists_all_commands(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("greeting", COMMANDS)

    code = main(["--help"])

    told = capsys.readouterr().out
    assert code == 0
    for name in "run purge queues dead plugins report greet".split():
        assert f"\n  {name} " in told
    assert "Say hello." in told


def test_help_survives_a_broken_plugin(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("broken", "import no_such_module")

    code = main(["--help"])

    told = capsys.readouterr().out
    assert code == 0
    assert "Run a worker." in told
    assert "Not all commands are listed: plugin broken" in told


@pytest.mark.parametrize("args", [[], ["dead"]])
def test_a_group_alone_shows_its_help(site: Site, capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(args) == 2

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("Usage: kw")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kw {kernel_worker.__version__}\n"


# --------------------------------------------------------------------------- commands of plugins


def test_a_plugins_command_runs(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("greeting", COMMANDS)
    (site.folder / "fake_greeting.py").write_text("\n".join(line[4:] for line in GREETING.splitlines()))

    assert main(["greet", "world"]) == 0
    assert capsys.readouterr().out == "hello world\n"


def test_a_command_that_cannot_be_imported_names_its_plugin(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("greeting", COMMANDS)

    assert main(["greet", "world"]) == 78
    assert "kw: command 'greet' of greeting (kernel-greeting 1.0) cannot be imported: ModuleNotFoundError" in complaint(
        capsys
    )


@pytest.mark.parametrize(("name", "other"), [("run", "the kernel"), ("greet", "greeting (kernel-greeting 1.0)")])
def test_two_commands_of_one_name_are_refused(
    site: Site, capsys: pytest.CaptureFixture[str], name: str, other: str
) -> None:
    site.plugin("greeting", COMMANDS)
    site.plugin("rival", COMMANDS.replace('"greet"', f'"{name}"'))

    code = main(["something"])

    told = complaint(capsys)
    assert code == 78
    assert f"brings a command '{name}'" in told
    if name == "run":
        assert f"which {other} has already" in told


def test_run_imports_no_commands_of_plugins(started: Started, site: Site) -> None:
    site.plugin("greeting", COMMANDS)
    (site.folder / "fake_greeting.py").write_text("raise RuntimeError")

    assert main(["run"]) == 7


# --------------------------------------------------------------------------- kw plugins


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return {f"{row['kind']}:{row['name']}": row for row in json.loads(capsys.readouterr().out)}


def test_plugins_shows_what_is_installed(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0

    told = capsys.readouterr().out.splitlines()
    assert told[0].split() == ["KIND", "NAME", "DISTRIBUTION", "VERSION", "SELECTED"]
    assert "pools prefork kernel-pool-prefork 1.0 yes" in [" ".join(line.split()) for line in told]
    assert "pools solo kernel-pool-solo 1.0 available" in [" ".join(line.split()) for line in told]


def test_plugins_shows_what_would_be_selected(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "--plugins", "solo,redis", "-j"]) == 0

    found = rows(capsys)
    assert found["pools:solo"]["selected"] == "yes"
    assert found["pools:prefork"]["selected"] == "no"
    assert found["brokers:redis"] == {
        "kind": "brokers",
        "name": "redis",
        "distribution": "kernel-broker-redis",
        "version": "1.0",
        "target": "fake_broker_redis:Driver",
        "selected": "yes",
    }
    assert found["brokers:sqlite"]["selected"] == "no"


def test_plugins_does_not_import_what_it_lists(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("broken", "import no_such_module")

    assert main(["plugins", "-j"]) == 0
    assert rows(capsys)["plugins:broken"]["selected"] == "yes"
    assert not [name for name in sys.modules if name.startswith("fake_")]


def test_plugins_checks_by_importing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("broken", "import no_such_module")
    site.results_module("redis")
    site.results_module("sqlite")

    code = main(["plugins", "--check", "-j"])

    told = capsys.readouterr()
    found = {f"{row['kind']}:{row['name']}": row["check"] for row in json.loads(told.out)}
    assert code == 1
    assert found.pop("plugins:broken") == "failed"
    assert set(found.values()) == {"ok"}
    assert "kw: plugin broken (kernel-broken 1.0) in kernel_worker.plugins cannot be imported" in told.err


def test_plugins_checks_only_what_is_selected(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("broken", "import no_such_module")
    site.results_module("redis")
    site.results_module("sqlite")

    assert main(["plugins", "--check", "--plugins", "-broken"]) == 0


def test_plugins_checks_for_misspelt_hooks(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.results_module("redis")
    site.results_module("sqlite")
    site.plugin("typo", "@hookimpl\ndef kw_bootstep(config): return []\n")

    assert main(["plugins", "--check"]) == 1
    assert "implements kw_bootstep: there is no such hook" in complaint(capsys)


def test_plugins_prints_the_boot_order(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin(
        "health",
        """
        from kernel_worker.steps import Bootstep

        class Health(Bootstep):
            name = "health"
            requires = ("consumer",)

        @hookimpl
        def kw_bootsteps(config):
            return [Health()]
        """,
    )

    assert main(["plugins", "--steps", "-j"]) == 0

    steps = json.loads(capsys.readouterr().out)
    names = [step["name"] for step in steps]
    assert names.index("pool") < names.index("consumer") < names.index("health")
    assert steps[names.index("health")] == {
        "name": "health",
        "plugin": "health (kernel-health 1.0)",
        "requires": "consumer",
    }


def test_plugins_without_any_says_how_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Site(tmp_path).alone():
        assert main(["plugins"]) == 0

    assert capsys.readouterr().out == "no plugins are installed: pip install kernel-worker\n"


# --------------------------------------------------------------------------- kw report


def test_report_tells_versions_plugins_and_settings_without_secrets(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.plugin("tls", "@hookimpl\ndef kw_report(config): return [('openssl', '3.0')]\n")

    code = main(["report", "-b", "redis://:hunter2@h/0", "-c", "2"])

    told = capsys.readouterr().out
    assert code == 0
    for words in ("kw ", "python ", "stevedore ", "openssl", "kernel-pool-prefork 1.0", "worker.concurrency"):
        assert words in told
    assert "redis://:**@h/0  (command line)" in told
    assert "hunter2" not in told


def test_report_goes_on_without_broken_plugins(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.plugin("broken", "import no_such_module")

    assert main(["report"]) == 0
    assert "problem" in (told := capsys.readouterr().out)
    assert "plugin broken (kernel-broken 1.0)" in told


# --------------------------------------------------------------------------- as a process


def test_the_process_ends_with_the_errors_code_and_no_traceback(site: Site) -> None:
    finished = site.kw("run", "-P", "gevent")

    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == (
        "kw: no pool named 'gevent' is installed (have: prefork, solo)\n    pip install kernel-pool-gevent\n"
    )


def test_the_core_alone_says_what_is_missing(tmp_path: Path) -> None:
    finished = Site(tmp_path).kw("run", "-A", "proj")

    assert finished.returncode == 2
    assert finished.stderr == (
        "kw: this is the kernel alone: no pool, no broker, no application loader is installed\n"
        "    pip install kernel-worker\n"
    )


def test_a_reader_that_goes_away_is_no_error(site: Site) -> None:
    quoted = " ".join([sys.executable, "-m", "kernel_worker.cli", "plugins", "-j"])

    finished = subprocess.run(["sh", "-c", f"{quoted} | true"], capture_output=True, text=True, timeout=30)

    assert "Traceback" not in finished.stderr


def test_a_signal_that_comes_as_the_interpreter_ends_is_not_the_exit_status() -> None:
    code = """
import os, sys
from kernel_worker.cli import main
class Late:  # deleted with its module, when signals have their defaults again
    def __del__(self, kill=os.kill, pid=os.getpid()):
        for number in (1, 2, 3, 15, 10, 12):
            kill(pid, number)
late = Late()
sys.argv = ["kw", "run", "--no-such-option"]
sys.exit(main())
"""

    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)

    assert finished.returncode == 2, finished.stderr


def test_closed_standard_descriptors_lead_nowhere(tmp_path: Path) -> None:
    """Cause: the next socket got the number of the closed stdout, and what a task's program printed went into it."""
    report = tmp_path / "report"
    code = f"""
import os
os.closerange(0, 3)
from kernel_worker.cli import main
main(["--version"])
found = [(os.fstat(n).st_rdev == os.stat(os.devnull).st_rdev, os.get_inheritable(n)) for n in range(3)]
open({str(report)!r}, "w").write(repr(found))
"""

    subprocess.run([sys.executable, "-c", code], timeout=30)

    assert report.read_text() == repr([(True, True)] * 3)
