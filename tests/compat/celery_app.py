"""What a stock Celery worker runs. Nothing of ours but the tasks."""

from __future__ import annotations

import celery

from . import tasks

app = celery.Celery("compat", set_as_current=True)
app.conf.update(tasks.settings(), broker_connection_retry_on_startup=True)
tasks.define(app)
