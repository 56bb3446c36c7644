"""Waiting messages for the drains: one message as Celery's own client sends it, repeated with fresh ids.

All systems are fed these same bytes, so what is measured is the worker and not who filled the queue.
"""

from __future__ import annotations

import json
import uuid

import redis

from .settings import QUEUE

BATCH = 1000


def take_template(server: redis.Redis) -> str:
    """The one message that waits in the queue; the database is empty afterwards."""
    template = server.lpop(QUEUE)
    server.flushall()
    return template.decode()


def fill(server: redis.Redis, template: str, number: int) -> None:
    """Make the queue hold `number` messages and the database nothing else."""
    server.flushall()
    envelope = json.loads(template)
    task_id, tag = envelope["headers"]["id"], envelope["properties"]["delivery_tag"]
    for start in range(0, number, BATCH):
        fresh = [
            template.replace(task_id, str(uuid.uuid4())).replace(tag, str(uuid.uuid4()))
            for _ in range(min(BATCH, number - start))
        ]
        server.lpush(QUEUE, *fresh)
