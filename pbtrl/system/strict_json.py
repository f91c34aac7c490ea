"""JSON according to RFC 8259, so that every other program can read pbtrl's files.

Python's own writer prints `NaN` and `Infinity`, which are not JSON. Here they are written as `null`, so readers get
None for a number that was not finite. (Python's reader still accepts `NaN`, which journals of earlier versions may
contain.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, **layout: Any) -> str:
    """Serialize to JSON text, with null for non-finite numbers; finite floats round-trip exactly.

    Args:
        value: mappings, lists, tuples, text, numbers, booleans and None.
        layout: `indent` or `separators`, as in `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **layout)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **layout)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
