"""What `-A` names on a command line, imported."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def import_named(spec: str) -> Any:
    """The object that "module" or "module:attribute.of.it" names, looked for in the working directory first.

    Raises whatever the import raises: the module is the user's.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, _, attribute = spec.partition(":")
    target: Any = importlib.import_module(module)
    for part in attribute.split(".") if attribute else ():
        target = getattr(target, part)
    return target
