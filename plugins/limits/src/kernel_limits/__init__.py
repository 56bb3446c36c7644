"""Revokes and rate limits. The hooks are in `plugin`; importing this package imports nothing else."""

from __future__ import annotations
