"""JSON as RFC 8259 has it: what pbtrl writes is read by every other program.

Python's own writer prints `NaN` and `Infinity`, which are no JSON. Here such a number is `null`, also in a reader's
hands: whoever reads a number that may have been none of these finds None. (Python's reader still takes `NaN`, which
journals of earlier versions may hold.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, **layout: Any) -> str:
    """The value as JSON text, with null for numbers that are not finite; finite floats round-trip exactly.

    Args:
        value: of mappings, lists, tuples, text, numbers, booleans and None.
        layout: `indent` or `separators`, as `json.dumps` has them.
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
