"""What `kw` runs: a native application."""

from __future__ import annotations

from kernel_app import App

from . import tasks

app = App("compat", **tasks.settings())
tasks.define(app)
