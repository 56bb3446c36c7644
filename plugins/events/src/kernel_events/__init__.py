"""Worker and task events in Celery's protocol. The hooks are in `plugin`; importing this package imports nothing else."""

from __future__ import annotations
