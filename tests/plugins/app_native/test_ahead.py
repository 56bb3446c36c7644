"""What is read before its turn runs as if it had been read in it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from kernel_app.execution import NativeJob
from kernel_app.worker import NativeLoader
from kernel_worker.drivers import Call
from kernel_worker.types import Job, Outcome, OutcomeKind
from tests.plugins.app_native.conftest import CONTEXT, MakeApp, Worker, job_of, publisher


class Thing:
    """Something a task leaves behind."""


@pytest.mark.parametrize("expires", [None, 60.0], ids=["", "expires"])
def test_what_a_task_leaves_in_its_request_ends_with_it(make_app: MakeApp, expires: float | None) -> None:
    app = make_app()
    left: list[weakref.ref[Thing]] = []

    @app.task(name="leave", bind=True)
    def leave(self: Any) -> None:
        self.request.thing = thing = Thing()
        left.append(weakref.ref(thing))

    worker = Worker(app)
    leave.apply_async(expires=expires)
    ahead = worker.loaded.read(job_of(publisher(app).sent.pop().envelope()))
    assert isinstance(ahead, NativeJob)

    worker.loaded.run(ahead)

    assert left[0]() is None


def test_job_that_a_plugin_runs_twice_has_a_request_of_its_own_each_time(make_app: MakeApp) -> None:
    app = make_app()
    seen: list[str] = []

    @app.task(name="note", bind=True)
    def note(self: Any, text: str) -> None:
        seen.append(getattr(self.request, "note", "") + text)
        self.request.note = "again "

    def twice(name: str, call: Call) -> Call:
        def wrapped(job: Job) -> Outcome:
            call(job)
            return call(job)

        return wrapped

    loaded = NativeLoader().load(app, CONTEXT)
    loaded.setup("w1@host1", twice)
    note.delay("here")

    outcome = loaded.run(loaded.read(job_of(publisher(app).sent.pop().envelope())))

    assert outcome.kind is OutcomeKind.SUCCESS
    assert seen == ["here", "here"]


def test_task_that_is_replaced_after_the_start_runs_as_it_was(make_app: MakeApp) -> None:
    app = make_app()
    seen: list[tuple[str, bool]] = []

    @app.task(name="old", bind=True)
    def old(self: Any) -> None:
        seen.append((self.name, self.request.called_directly))

    @app.task(name="new")
    def new() -> None: ...

    worker = Worker(app)
    old.delay()
    app.tasks["old"] = new

    worker.loaded.run(worker.loaded.read(job_of(publisher(app).sent.pop().envelope())))

    assert seen == [("old", False)]
