"""What `kw` runs: a native application."""

from __future__ import annotations

from kernel_app import App

from . import tasks

# Celery refuses an unknown task at once: nobody here waits for a newer worker.
app = App("compat", task_unknown_max_returns=0, **tasks.settings())
tasks.define(app)
