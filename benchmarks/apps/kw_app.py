"""The benchmarked task as a kernel_app application."""

from benchmarks import settings, stamps
from kernel_app import App

app = App(
    "bench",
    broker_url=settings.broker_url(),
    result_backend=settings.results_url(),
    task_ignore_result=settings.results_url() is None,
)


@app.task(name=settings.TASK)
def noop() -> int:
    """Nothing but the stamp."""
    stamps.append()
    return 1
