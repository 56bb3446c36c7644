"""What a delivery needs to know of kombu's virtual envelope: headers and properties. The body is left alone.

Pure. The bytes may come from anybody, so nothing here raises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Parts = tuple[Mapping[str, Any], Mapping[str, Any], str | None]
"""Headers, properties, and what is wrong; with something wrong the first two are empty."""


def read_envelope(raw: bytes) -> Parts:
    """Headers and properties of an envelope, or the reason why it is none."""
    try:
        found = json.loads(raw.decode())  # decoded first: from bytes, json takes UTF-16 and UTF-32 for granted
    except UnicodeDecodeError:
        return _wrong("not UTF-8")
    except RecursionError:
        return _wrong("nested too deep")
    except ValueError as error:  # also for a number of thousands of digits
        return _wrong(f"not JSON: {str(error)[:100]}")
    if not isinstance(found, dict):
        return _wrong(f"not a JSON object but {type(found).__name__}")
    headers, properties = found.get("headers"), found.get("properties")
    if headers is None:
        headers = {}
    if not isinstance(headers, dict):
        return _wrong("headers are no JSON object")
    if not isinstance(properties, dict):
        return _wrong("properties are missing or no JSON object")
    if not isinstance(found.get("body"), str):
        return _wrong("the body is missing or no text")
    return headers, properties, None


def _wrong(reason: str) -> Parts:
    return {}, {}, f"the message is no envelope: {reason}"
