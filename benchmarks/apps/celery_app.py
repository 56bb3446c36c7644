"""The benchmarked task as a Celery application."""

from celery import Celery

from benchmarks import settings, stamps, work

app = Celery("bench", broker=settings.broker_url(), backend=settings.results_url())
app.conf.update(task_ignore_result=settings.results_url() is None, broker_connection_retry_on_startup=True)


WORK = {"nap": work.nap, "hash": work.digest}.get(settings.work())


@app.task(name=settings.TASK)
def noop():
    """The work of this run, if any, and the stamp."""
    if WORK is not None:
        WORK()
    stamps.append()
    return 1
