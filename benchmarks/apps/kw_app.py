"""The benchmarked task as a kernel_app application."""

from benchmarks import settings, stamps, work
from kernel_app import App

app = App(
    "bench",
    broker_url=settings.broker_url(),
    result_backend=settings.results_url(),
    task_ignore_result=settings.results_url() is None,
)


WORK = {"nap": work.nap, "hash": work.digest}.get(settings.work())


def noop() -> int:
    """The work of this run, if any, and the stamp."""
    if WORK is not None:
        WORK()
    stamps.append()
    return 1


async def async_nap() -> int:
    """As a coroutine."""
    await work.async_nap()
    stamps.append()
    return 1


noop = app.task(name=settings.TASK)(async_nap if settings.work() == "async nap" else noop)
