"""The benchmarked task as a Celery application."""

from celery import Celery

from benchmarks import settings, stamps

app = Celery("bench", broker=settings.broker_url(), backend=settings.results_url())
app.conf.update(task_ignore_result=settings.results_url() is None, broker_connection_retry_on_startup=True)


@app.task(name=settings.TASK)
def noop():
    """Nothing but the stamp."""
    stamps.append()
    return 1
