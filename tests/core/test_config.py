"""Configuration: sources and their order, files, the application's layer, error texts, masking."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import pytest

from kernel_worker.config import Config, Draft, Secret, compose, cpus_available, expand_node_name, misspelt_variables
from kernel_worker.config_file import SettingsFile, find_settings_file
from kernel_worker.errors import ConfigError, UsageError
from kernel_worker.options import duration, option


@dataclass(frozen=True, slots=True)
class PoolOptions:
    max_tasks: int | None = option(None, "--max-tasks-per-child", celery="worker_max_tasks_per_child")
    patience: float = option(2.0, "--patience", parse=duration)
    token: Secret | None = option(None, "--token", secret=True)
    mode: str = option("fair", "--mode", choices=("fair", "deep"))


def config(
    command_line: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    file: dict[str, Any] | None = None,
    **more: Any,
) -> Config:
    """A configuration with the sections worker and prefork; keys are "section.field"."""
    given = {(key.split(".")[0], key.split(".")[1]): value for key, value in (command_line or {}).items()}
    return compose(
        {"prefork": PoolOptions},
        command_line=given,
        environ=environ or {},
        file=SettingsFile("kw.toml", file) if file is not None else None,
        **more,
    ).freeze()


def test_defaults_hold_where_nobody_speaks() -> None:
    settings = config()

    assert settings.worker.hostname == "kw@%h"
    assert settings.worker.grace == 25.0
    assert settings.worker.lease == 15.0
    assert settings.worker.max_deliveries == 3
    assert settings.worker.max_body == 16 * 1024 * 1024
    assert settings.worker.prefetch_multiplier is None
    assert settings.worker.loglevel == "warning"
    assert settings.worker.tasks_at_once == cpus_available()
    assert settings.section("prefork") == PoolOptions()
    assert settings.source("worker", "grace") == "default"
    assert not settings.explicit("worker", "grace")


def test_the_first_source_that_speaks_wins() -> None:
    file = {"worker": {"concurrency": 3, "grace": 30, "lease": 40}}
    environ = {"KW_CONCURRENCY": "2", "KW_GRACE": "20"}

    settings = config({"worker.concurrency": "1"}, environ, file).with_settings(
        {"worker_concurrency": 4, "worker_lease": 50, "task_time_limit": 60}
    )

    assert settings.worker.concurrency == 1
    assert settings.source("worker", "concurrency") == "command line"
    assert settings.worker.grace == 20.0
    assert settings.source("worker", "grace") == "environment KW_GRACE"
    assert settings.worker.lease == 40.0
    assert settings.source("worker", "lease") == "kw.toml"
    assert settings.worker.time_limit == 60.0
    assert settings.source("worker", "time_limit") == "application"
    assert settings.explicit("worker", "time_limit")


def test_sections_of_plugins_have_variables_with_their_name() -> None:
    settings = config(environ={"KW_PREFORK_MAX_TASKS": "10"}, file={"prefork": {"patience": "3m"}})

    assert settings.section("prefork").max_tasks == 10
    assert settings.section("prefork").patience == 180.0


def test_empty_variables_count_as_unset() -> None:
    assert config(environ={"KW_BROKER": ""}).worker.broker is None


def test_environment_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KW_GRACE", "7")

    assert compose({}).freeze().worker.grace == 7.0


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ({"command_line": {"worker.concurrency": "many"}}, UsageError, "'many' is not a number (command line -c)"),
        ({"command_line": {"worker.concurrency": "0"}}, UsageError, "0 is too small: at least 1 (command line -c)"),
        ({"environ": {"KW_GRACE": "soon"}}, ConfigError, "(environment KW_GRACE)"),
        ({"file": {"worker": {"queues": 3}}}, ConfigError, "worker.queues: 3 is not a list of names"),
        ({"file": {"worker": {"purge": "maybe"}}}, ConfigError, "'maybe' is neither true nor false (kw.toml)"),
        ({"file": {"worker": {"app": 5}}}, ConfigError, "worker.app: 5 is not text (kw.toml)"),
        ({"command_line": {"worker.loglevel": "loud"}}, UsageError, "'loud' is not one of debug, info, warning"),
        ({"command_line": {"prefork.mode": "odd"}}, UsageError, "prefork.mode: 'odd' is not one of fair, deep"),
        ({"environ": {"KW_HOSTNAME": "w1@%x"}}, ConfigError, "unknown key '%x'"),
        ({"file": {"worker": {"time_limit": 5, "soft_time_limit": 6}}}, ConfigError, "soft_time_limit 6 s lies above"),
        ({"environ": {"KW_LEASE": "10ms"}}, ConfigError, "lease 0.01 s is too short"),
    ],
)
def test_impossible_values_are_refused_with_field_value_and_source(
    source: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as refused:
        config(**source)

    assert text in str(refused.value)


def test_an_impossible_secret_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError) as refused:
        config(file={"prefork": {"token": 918273}})

    assert "prefork.token: its value cannot be used (kw.toml)" in str(refused.value)
    assert "918273" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ({"wroker": {}}, "kw.toml: no section named 'wroker' (have: prefork, worker). Did you mean 'worker'?"),
        ({"worker": {"concurency": 1}}, "[worker] has no setting 'concurency'"),
        ({"worker": {"concurency": 1}}, "Did you mean 'concurrency'?"),
        ({"grace": 3}, "'grace' stands outside of a section"),
        ({"worker": 3}, "'worker' must be a table: [worker]"),
    ],
)
def test_unknown_names_in_a_file_are_errors(file: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config(file=file)

    assert text in str(refused.value)


def test_a_section_of_an_installed_plugin_that_is_not_selected_is_fine() -> None:
    settings = config(file={"gevent": {"anything": 1}}, installed={"gevent"})

    assert "gevent" not in settings
    assert "prefork" in settings


def test_keys_in_a_file_may_be_written_with_dashes() -> None:
    assert config(file={"worker": {"max-body": "64k"}}).worker.max_body == 65536


@pytest.mark.parametrize(
    ("text", "level"), [("INFO", "info"), ("Warn", "warning"), ("FATAL", "critical"), ("debug", "debug")]
)
def test_log_level_is_taken_in_any_case(text: str, level: str) -> None:
    assert config({"worker.loglevel": text}).worker.loglevel == level


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("kw@%h", "kw@box.example.org"),
        ("w1@%n", "w1@box"),
        ("w1@%d", "w1@example.org"),
        ("100%%@%n", "100%@box"),
        ("w1", "kw@w1"),
        ("a%%h@%h", "a%h@box.example.org"),
    ],
)
def test_node_name_expands(pattern: str, name: str) -> None:
    assert expand_node_name(pattern, "box.example.org") == name


@pytest.mark.parametrize("pattern", ["", "@", "w@", "%z@h", "a b@h", "w%"])
def test_node_name_refuses_what_makes_none(pattern: str) -> None:
    with pytest.raises(ValueError):
        expand_node_name(pattern, "box.example.org")


def test_concurrency_auto_means_the_processors_there_are() -> None:
    assert config({"worker.concurrency": "auto"}).worker.concurrency is None
    assert config({"worker.concurrency": "auto"}).worker.tasks_at_once == len(os.sched_getaffinity(0))
    assert config({"worker.concurrency": "7"}).worker.tasks_at_once == 7


def test_a_limit_of_zero_means_none() -> None:
    assert config({"worker.time_limit": "0", "worker.startup_timeout": "0"}).worker.time_limit is None


def test_application_fills_only_what_nobody_set_and_keeps_its_own() -> None:
    before = config(environ={"KW_BROKER": "redis://a"})

    after = before.with_settings(
        {
            "broker_url": "redis://b",
            "result_backend": "redis://c",
            "worker_max_tasks_per_child": 9,
            "worker_prefetch_multiplier": 2,
            "task_soft_time_limit": None,
            "beat_schedule": {"not": "ours"},
        }
    )

    assert after.worker.broker == Secret("redis://a")
    assert after.worker.result_backend == Secret("redis://c")
    assert after.section("prefork").max_tasks == 9
    assert after.worker.prefetch_multiplier == 2
    assert after.source("worker", "soft_time_limit") == "default"
    assert before.worker.result_backend is None


def test_application_with_several_brokers_gives_one_url() -> None:
    settings = config().with_settings({"broker_url": ["redis://a", "redis://b"]})

    assert settings.worker.broker == Secret("redis://a;redis://b")


def test_bad_application_settings_are_named_with_their_value() -> None:
    with pytest.raises(ConfigError) as refused:
        config().with_settings({"worker_concurrency": "lots"})

    assert str(refused.value) == ("worker.concurrency: 'lots' is not a number (application setting worker_concurrency)")


def test_application_limits_are_checked_against_the_command_line() -> None:
    with pytest.raises(ConfigError, match="soft_time_limit 30 s lies above time_limit 10 s"):
        config({"worker.time_limit": "10"}).with_settings({"task_soft_time_limit": 30})


def test_plugins_check_what_the_application_has_set() -> None:
    def check(draft: Draft) -> None:
        if draft.get("prefork", "max_tasks") == 1:
            raise ConfigError("one task per child is a waste")

    with pytest.raises(ConfigError, match="a waste"):
        config().with_settings({"worker_max_tasks_per_child": 1}, configure=check)


def test_draft_can_be_read_and_changed() -> None:
    draft = compose({"prefork": PoolOptions}, environ={"KW_GRACE": "3"})

    draft.set("prefork", "patience", "1m")
    draft.set("worker", "broker", "redis://:hunter2@h/0")
    draft.set("worker", "grace", 4)
    settings = draft.freeze()

    assert draft.get("worker", "lease") == 15.0
    assert settings.section("prefork").patience == 60.0
    assert settings.source("prefork", "patience") == "plugin"
    assert settings.worker.broker == Secret("redis://:hunter2@h/0")
    assert settings.worker.grace == 4.0
    assert settings.with_settings({}).worker.grace == 4.0


@pytest.mark.parametrize(
    ("section", "name", "text"),
    [
        ("prefrok", "patience", "no section named 'prefrok' (have: prefork, worker). Did you mean 'prefork'?"),
        ("prefork", "patiense", "no setting named 'patiense' in section prefork"),
    ],
)
def test_draft_and_config_name_what_they_do_not_know(section: str, name: str, text: str) -> None:
    draft = compose({"prefork": PoolOptions}, environ={})

    with pytest.raises(ConfigError) as of_get:
        draft.get(section, name)
    with pytest.raises(ConfigError) as of_set:
        draft.set(section, name, 1)
    with pytest.raises(ConfigError):
        draft.freeze().source(section, name)

    assert text in str(of_get.value)
    assert text in str(of_set.value)


def test_config_refuses_an_unknown_section() -> None:
    with pytest.raises(ConfigError, match="no section named 'health'"):
        config().section("health")


def test_config_is_frozen() -> None:
    settings = config()

    with pytest.raises(FrozenInstanceError):
        settings.worker.grace = 1.0  # type: ignore[misc]


def test_descriptions_are_masked() -> None:
    settings = config(
        {"worker.broker": "redis://:hunter2@h/0", "prefork.token": "hunter2"}, file={"worker": {"queues": ["a", "b"]}}
    )

    rows = {(section, name): (value, source) for section, name, value, source in settings.describe()}

    assert rows["worker", "broker"] == ("redis://:**@h/0", "command line")
    assert rows["prefork", "token"] == ("**", "command line")
    assert rows["worker", "queues"] == ("a,b", "kw.toml")
    assert rows["worker", "purge"] == ("false", "default")
    assert "hunter2" not in repr(settings) + str(settings)
    assert "redis://:**@h/0" in repr(settings)


def test_options_that_nothing_can_read_are_the_plugins_fault() -> None:
    @dataclass(frozen=True)
    class Odd:
        thing: dict = option(None, "--thing")  # type: ignore[type-arg]

    with pytest.raises(ConfigError, match=r"odd\.thing: no value can be read for the annotation"):
        compose({"odd": Odd})


# --------------------------------------------------------------------------- files


def test_kw_toml_is_read_before_pyproject(tmp_path: Path) -> None:
    (tmp_path / "kw.toml").write_text("[worker]\nconcurrency = 4\n")
    (tmp_path / "pyproject.toml").write_text("[tool.kw.worker]\nconcurrency = 5\n")

    found = find_settings_file(folder=tmp_path)

    assert found == SettingsFile("kw.toml", {"worker": {"concurrency": 4}})


def test_pyproject_is_read_by_its_table(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n[tool.kw.worker]\nconcurrency = 5\n")

    found = find_settings_file(folder=tmp_path)

    assert found == SettingsFile("pyproject.toml [tool.kw]", {"worker": {"concurrency": 5}})


@pytest.mark.parametrize("content", ["[project]\nname = 'x'\n", "[project]\nname = 'kw'\n", None])
def test_no_file_with_settings_is_no_file(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "pyproject.toml").write_text(content)

    assert find_settings_file(folder=tmp_path) is None


def test_named_file_is_read_and_must_exist(tmp_path: Path) -> None:
    named = tmp_path / "staging.toml"
    named.write_text("[worker]\ngrace = 1\n")

    found = find_settings_file(str(named))

    assert found == SettingsFile(str(named), {"worker": {"grace": 1}})
    with pytest.raises(ConfigError, match="no configuration file at"):
        find_settings_file(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("content", [b"[worker\n", b"\xff\xfe"], ids=["syntax", "encoding"])
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "kw.toml").write_bytes(content)

    with pytest.raises(ConfigError, match=r"kw\.toml is not valid TOML"):
        find_settings_file(folder=tmp_path)


def test_pyproject_must_hold_a_table(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool]\nkw = 3\n")

    with pytest.raises(ConfigError, match="must be a table"):
        find_settings_file(folder=tmp_path)


def test_variables_that_nearly_are_settings_are_told_and_others_are_not() -> None:
    environ = {"KW_CONCURENCY": "3", "KW_PREFORK_PATIENC": "1", "KW_POOL": "solo", "KW_CONFIG": "x", "KW_MY_OWN": "1"}

    told = misspelt_variables(config(), environ)

    assert [sentence.partition(" is no setting")[0] for sentence in told] == [
        "environment KW_CONCURENCY",
        "environment KW_PREFORK_PATIENC",
    ]
    assert told[0].endswith("did you mean KW_CONCURRENCY?")
    assert misspelt_variables(config(), {"PATH": "/bin"}) == []
