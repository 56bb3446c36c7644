"""Applications, settings, tasks: what is defined, and what is refused where it is written."""

from __future__ import annotations

import functools
import json
import pickle
import subprocess
import sys
import threading
import types
from datetime import timedelta
from typing import Any

import pytest

import kernel_app
from kernel_app import App, ConfigError, Task
from kernel_app.settings import DEFAULTS
from kernel_app.worker import NativeLoader
from kernel_worker.drivers import LoadContext
from tests.plugins.app_native.conftest import CONTEXT, MakeApp, Worker, publisher

# --------------------------------------------------------------------------- settings


def test_defaults_are_one_file_and_late_ack() -> None:
    conf = App("x").conf

    assert conf.broker_url == conf.result_backend == "sqlite:///kw.db"
    assert conf.task_acks_late is True
    assert (conf.task_default_queue, conf.task_serializer) == ("celery", "json")


def test_defaults_are_celerys_but_for_what_is_named() -> None:
    from celery.app.defaults import DEFAULTS as CELERYS

    other = {name for name in DEFAULTS.keys() & CELERYS.keys() if _plain(DEFAULTS[name]) != _plain(CELERYS[name])}

    assert other == {
        "broker_url", "result_backend", "task_acks_late", "worker_autoscaler", "beat_scheduler",
        "result_backend_max_retries", "worker_hijack_root_logger", "worker_redirect_stdouts", "worker_log_format",
        "worker_task_log_format", "redis_socket_timeout", "redis_socket_keepalive",
    }  # fmt: skip
    ours = {name for name in DEFAULTS if name not in CELERYS}
    assert "task_max_body_bytes" in ours


def _plain(value: Any) -> Any:
    if hasattr(value, "total_seconds"):
        return value.total_seconds()
    return list(value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    ("name", "near"),
    [("task_serialiser", "task_serializer"), ("CELERY_TASK_ACKS_LATE", "task_acks_late"), ("brokerurl", "broker_url")],
)
def test_an_unknown_setting_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"no setting '{name}'; did you mean '{near}'"):
        App("x", **{name: 1})


def test_settings_read_as_attributes_and_keys() -> None:
    app = App("x", task_time_limit=5, broker="redis://h", backend=None, mongodb_backend_settings={})
    app.conf.update(task_track_started=True)
    app.conf.task_protocol = 1
    app.conf["timezone"] = "UTC"

    assert (app.conf.task_time_limit, app.conf["task_track_started"]) == (5, True)
    assert (app.conf.broker_url, app.conf.result_backend) == ("redis://h", None)
    assert app.conf.get("nope", 7) == 7
    assert set(app.conf.explicit()) == {
        "task_time_limit", "broker_url", "result_backend", "mongodb_backend_settings", "task_track_started",
        "task_protocol", "timezone",
    }  # fmt: skip
    with pytest.raises(AttributeError, match="did you mean 'task_serializer'"):
        _ = app.conf.task_serialiser
    with pytest.raises(ConfigError):
        app.conf.update(task_time_limit=6, nope=1)
    assert app.conf.task_time_limit == 5


def test_the_settings_show_no_values() -> None:
    assert "secret" not in repr(App("x", broker_url="redis://:secret@h").conf)


# --------------------------------------------------------------------------- tasks


def test_names_come_from_module_and_function(app: App) -> None:
    @app.task
    def first() -> None: ...

    def in_main() -> None: ...

    in_main.__module__ = "__main__"

    assert first.name == f"{__name__}.first"
    assert app.task(in_main).name == "proj.in_main"
    assert app.task(name="own")(lambda: None).name == "own"
    assert app.tasks["own"].name == "own"


def test_a_task_is_still_its_function(app: App) -> None:
    @app.task(name="t")
    def add(x: int, y: int = 1) -> int:
        """Adds."""
        return x + y

    assert add(1, y=2) == 3
    assert (add.__doc__, add.__name__, add.__wrapped__(5)) == ("Adds.", "add", 6)  # type: ignore[attr-defined]
    assert "t" in repr(add)
    with pytest.raises(TypeError, match="send its name"):
        pickle.dumps(add)


def test_a_second_task_of_one_name_warns_and_the_first_stays(app: App) -> None:
    @app.task(name="t")
    def first() -> int:
        return 1

    with pytest.warns(UserWarning, match="task name 't' is taken"):

        @app.task(name="t")
        def second() -> int:
            return 2

    assert second is first
    assert app.task(name="t")(first.__wrapped__) is first  # type: ignore[attr-defined]


def test_an_unknown_task_option_is_refused_with_the_nearest(app: App) -> None:
    with pytest.raises(TypeError, match="no option 'max_retrys'; did you mean 'max_retries'"):
        app.task(max_retrys=1)(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="'delay'"):
        app.task(delay=1, name="x")(lambda: None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="by name"):
        app.task("name")  # type: ignore[call-overload]


def test_a_base_class_may_add_attributes_and_defaults(app: App) -> None:
    class Base(Task[..., Any]):
        flavour: str = "none"
        max_retries = 9
        acks_late = False

    @app.task(base=Base, flavour="sweet")  # type: ignore[call-overload]
    def job() -> None: ...

    assert isinstance(job, Base)
    assert (job.flavour, job.max_retries, job.acks_late) == ("sweet", 9, False)


def test_a_task_may_be_a_class(app: App) -> None:
    class Add(Task[..., int]):
        name = "adder"

        def run(self, x: int, y: int) -> int:
            return x + y

    add = app.register_task(Add)

    assert add(1, 2) == 3
    with pytest.raises(TypeError):
        add.delay(1)
    add.delay(1, 2)
    assert Worker(app).run().result is not None
    with pytest.raises(TypeError, match="no run method"):
        app.register_task(Task)


def test_attributes_follow_the_settings_unless_set(app: App) -> None:
    @app.task(time_limit=5)
    def own() -> None: ...

    @app.task(time_limit=None)
    def following() -> None: ...

    app.conf.update(task_time_limit=60, task_acks_late=False)

    assert (own.time_limit, following.time_limit) == (5, 60)
    assert following.acks_late is False


@pytest.mark.parametrize("entry", [{"t": {"time_limit": 3}}, {"*": {"time_limit": 3}}, [{}, {"t": {"time_limit": 3}}]])
def test_annotations_patch_tasks(make_app: MakeApp, entry: Any) -> None:
    app = make_app(task_annotations=entry)

    assert app.task(name="t")(lambda: None).time_limit == 3


# --------------------------------------------------------------------------- arguments


def plain(x: int, y: int = 1) -> None: ...
def positional(x: int, /, y: int) -> None: ...
def keyword(x: int, *, y: int) -> None: ...
def anything(x: int, *args: int, **kwargs: int) -> None: ...


class Method:
    def method(self, x: int) -> None: ...


ARGUMENTS: dict[str, tuple[Any, bool, Any, Any, bool]] = {
    "plain": (plain, False, (1,), {}, True),
    "default given": (plain, False, (1, 2), {}, True),
    "by name": (plain, False, (), {"x": 1, "y": 2}, True),
    "mixed": (plain, False, (1,), {"y": 2}, True),
    "missing": (plain, False, (), {}, False),
    "missing by name": (plain, False, (), {"y": 2}, False),
    "too many": (plain, False, (1, 2, 3), {}, False),
    "unknown name": (plain, False, (1,), {"z": 1}, False),
    "twice": (plain, False, (1,), {"x": 1}, False),
    "positional only": (positional, False, (1,), {"y": 2}, True),
    "positional only by name": (positional, False, (), {"x": 1, "y": 2}, False),
    "keyword only": (keyword, False, (1,), {"y": 2}, True),
    "keyword only missing": (keyword, False, (1,), {}, False),
    "keyword only by position": (keyword, False, (1, 2), {}, False),
    "anything": (anything, False, (1, 2, 3), {"z": 1}, True),
    "anything missing": (anything, False, (), {}, False),
    "bound": (plain, True, (), {}, True),
    "bound too many": (plain, True, (1, 2), {}, False),
    "partial": (functools.partial(plain, 1), False, (2,), {}, True),
    "partial too many": (functools.partial(plain, 1), False, (2, 3), {}, False),
    "method": (Method().method, False, (1,), {}, True),
    "method too many": (Method().method, False, (1, 2), {}, False),
    "builtin": (len, False, ([],), {}, True),
    "class": (int, False, (5,), {}, True),
}


@pytest.mark.parametrize(("function", "bind", "args", "kwargs", "fits"), ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_arguments_are_checked_where_the_task_is_called(
    app: App, function: Any, bind: bool, args: Any, kwargs: Any, fits: bool
) -> None:
    task = app.task(bind=bind, name="t")(function)

    if fits:
        task.apply_async(args, kwargs)
    else:
        with pytest.raises(TypeError):
            task.apply_async(args, kwargs)
    assert len(publisher(app).sent) == fits


def test_checking_can_be_turned_off(app: App) -> None:
    app.task(name="t", typing=False)(plain).delay(1, 2, 3)  # type: ignore[call-arg]

    assert len(publisher(app).sent) == 1


# --------------------------------------------------------------------------- transports


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"broker_url": "nats://h"}, "pip install kernel-broker-nats"),
        ({"broker_url": "no url"}, "is no URL"),
        ({"broker_url": ""}, "broker_url is empty"),
    ],
)
def test_a_broker_nobody_can_speak_to_is_told(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        App("x", **settings).send_task("t")


def test_a_result_backend_nobody_can_speak_to_is_told() -> None:
    with pytest.raises(ConfigError, match="pip install kernel-result-mongodb"):
        _ = App("x", result_backend="mongodb://u:p@h").AsyncResult("x").state


def test_installed_transports_are_found_by_their_scheme(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = App("x")

    app.send_task("t")

    assert (tmp_path / "kw.db").exists()
    app.close()


def test_threads_share_one_connection(app: App) -> None:
    barrier = threading.Barrier(8)

    def send() -> None:
        barrier.wait()
        for _ in range(50):
            app.send_task("t")

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    sent = publisher(app).sent
    assert len(sent) == 400
    assert len({message.headers["id"] for message in sent}) == 400


# --------------------------------------------------------------------------- loading


def module_with(**values: Any) -> types.ModuleType:
    module = types.ModuleType("m")
    vars(module).update(values)
    return module


def test_the_application_of_a_module_is_found() -> None:
    one, other = App("one"), App("other")
    accepts = NativeLoader().accepts

    assert accepts(module_with(app=one, x=other)) is one
    assert accepts(module_with(celery=one, x=other)) is one
    assert accepts(module_with(x=one, y=one)) is one
    assert accepts(module_with(x=one, y=other)) is None
    assert accepts(module_with(app=5)) is None


def test_loading_applies_overrides_and_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("x", imports=["my_tasks"], task_routes={"a": "b"}, task_queues=[kernel_app.Queue("q")])
    module = types.ModuleType("my_tasks")
    monkeypatch.setitem(sys.modules, "my_tasks", module)

    @app.task(name="t", rate_limit="10/m", time_limit=5, acks_on_failure_or_timeout=False, acks_on_timeout=True)
    def job() -> None: ...

    overrides = {"broker_url": "memory://", "task_default_queue": "d", "not_a_celery_name": 1}
    loaded = NativeLoader().load(app, LoadContext(overrides, CONTEXT.publishers, CONTEXT.results))

    info = loaded.info
    assert app.conf.broker_url == "memory://"
    assert (info.name, info.kind, info.default_queue) == ("x", "native", "d")
    assert info.settings["broker_url"] == "memory://"
    assert "task_queues" not in info.settings
    assert info.settings["task_routes"] == {"a": "b"}
    task = info.tasks["t"]
    assert (task.rate_limit, task.time_limit, task.soft_time_limit, task.acks_late) == ("10/m", 5, None, True)
    assert (task.acks_on_failure, task.acks_on_timeout) == (False, True)


def test_a_module_that_cannot_be_imported_stops_loading() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        NativeLoader().load(App("x", include=["no_such_module"]), LoadContext())


def test_a_result_backend_that_is_missing_stops_loading() -> None:
    with pytest.raises(ConfigError, match="pip install kernel-result-mongodb"):
        NativeLoader().load(App("x", result_backend="mongodb://h"), LoadContext())


def test_settings_told_to_the_kernel_are_plain_json(make_app: MakeApp) -> None:
    app = make_app(result_expires=timedelta(hours=1), beat_schedule={"x": object()}, worker_concurrency=3)

    settings = Worker(app).loaded.info.settings

    assert json.loads(json.dumps(settings)) == {
        "broker_url": "memory://", "result_backend": "memory://", "result_expires": 3600.0, "worker_concurrency": 3,
    }  # fmt: skip


def test_an_unknown_content_type_stops_loading() -> None:
    with pytest.raises(ConfigError, match="'jsn'"):
        NativeLoader().load(App("x", accept_content=["jsn"]), LoadContext())


# --------------------------------------------------------------------------- the package


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, kernel_app; kernel_app.App('x').task(lambda: None, ); print(*sys.modules)"
    code = code.replace("lambda: None, ", "lambda: None")
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    loaded = {name.partition(".")[0] for name in output.split()}
    heavy = {
        "kernel_worker",
        "kombu",
        "click",
        "redis",
        "msgspec",
        "asyncio",
        "inspect",
        "logging",
        "importlib_metadata",
    }
    assert not loaded & heavy
    assert "importlib.metadata" not in output.split()


def test_public_names_are_sorted_and_each_can_be_imported() -> None:
    assert sorted(kernel_app.__all__) == kernel_app.__all__
    for name in kernel_app.__all__:
        assert getattr(kernel_app, name) is not None, name


def test_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Ap'"):
        kernel_app.Ap  # noqa: B018


TYPED = """
from kernel_app import App, Task

app = App("x")

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task(bind=True, max_retries=3)
def bound(self: Task[..., str], x: int) -> str:
    return str(self.request.id)

@app.task(name="z")
async def later(x: int) -> bytes:
    return b""

good: int = add.delay(1, y=2).get()
text: str = bound.delay(1).get()
data: bytes = later.delay(1).get()
direct: int = add(1, 2)
add.apply_async((1, 2), countdown=5)
add.delay("a", 2)  # wrong
bound.delay()  # wrong
later.delay(x="")  # wrong
wrong: str = add.delay(1, 2).get()  # wrong
add.apply_async((1, 2), contdown=5)  # wrong
add(1)  # wrong
app.task(nam="x")  # wrong
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_wrong_arguments_are_found_by_a_type_checker(tmp_path: Any) -> None:
    (tmp_path / "typed.py").write_text(TYPED)
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "typed.py"]

    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout

    wrong = {number for number, line in enumerate(TYPED.splitlines(), 1) if line.endswith("# wrong")}
    assert {int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line} == wrong
