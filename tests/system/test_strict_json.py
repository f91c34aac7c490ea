"""JSON that pbtrl writes is standard JSON."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbtrl.system.strict_json import to_json
from tests.test_layers import ALL, name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "null"),
        ([1.0, -math.inf], "[1.0, null]"),
        ({"a": (math.inf, {"b": [np.float64("nan"), "NaN"]})}, '{"a": [null, {"b": [null, "NaN"]}]}'),
        ({"a": [1, 2.5, True, None, "x"]}, '{"a": [1, 2.5, true, null, "x"]}'),
    ],
)
def test_non_finite_numbers_become_null(value: Any, text: str) -> None:
    assert to_json(value) == text


@pytest.mark.parametrize("value", [0.1, 1e-320, 1.7976931348623157e308, -0.0, 2**80])
def test_finite_numbers_round_trip_exactly(value: float) -> None:
    assert json.loads(to_json({"x": [value]})) == {"x": [value]}
    assert json.loads(to_json({"x": [value, math.nan]})) == {"x": [value, None]}


def test_layout_is_kept() -> None:
    assert to_json({"a": math.nan, "b": 1}, separators=(",", ":")) == '{"a":null,"b":1}'
    assert to_json([math.nan], indent=2) == "[\n  null\n]"


@pytest.mark.parametrize("path", [p for p in ALL if name(p) != "pbtrl.system.strict_json"], ids=name)
def test_no_other_module_writes_json(path: Path) -> None:
    tree = ast.parse(path.read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "json" for a in n.names}
    assert not used & {"json.dumps", "json.dump", "json.JSONEncoder"}
    assert not imported
