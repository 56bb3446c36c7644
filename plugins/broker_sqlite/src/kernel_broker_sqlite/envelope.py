"""Read kombu's virtual envelope: a JSON object with body, content-type, content-encoding, headers, properties.

Pure, and never raises: the bytes may come from anybody.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Parts = tuple[Mapping[str, Any], Mapping[str, Any], str | None]
"""Headers, properties, and what is wrong; with something wrong the first two are empty."""


def read_envelope(raw: bytes, *, body_apart: bool = False) -> Parts:
    """Headers and properties of an envelope.

    :param body_apart: the body is kept beside the envelope, which then needs none.
    """
    try:
        # Not json.loads(raw): that guesses UTF-16 and UTF-32 as well.
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, {}, f"the envelope is not UTF-8 (byte {error.start})"
    except RecursionError:
        return {}, {}, "the envelope is nested too deep"
    except ValueError as error:  # also a number with thousands of digits
        return {}, {}, f"the envelope is not JSON ({str(error)[:100]})"
    if not isinstance(value, dict):
        return {}, {}, f"the envelope is a JSON {type(value).__name__}, not an object"
    headers, properties = value.get("headers"), value.get("properties")
    if headers is None:  # kombu reads such a message too; it may be of protocol 1
        headers = {}
    if not isinstance(headers, dict):
        return {}, {}, "the envelope's 'headers' are not an object"
    if not isinstance(properties, dict):
        return {}, {}, "the envelope's 'properties' are missing or not an object"
    if not body_apart and not isinstance(value.get("body"), str):
        return {}, {}, "the envelope's 'body' is missing or not text"
    return headers, properties, None
