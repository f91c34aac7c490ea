"""Messages as JSON: what was encoded comes back, and its class with it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest

from pbtrl.system.typed_json import Codec


@dataclass(frozen=True)
class Point:
    x: float | None


@dataclass(frozen=True)
class Line:
    points: tuple[Point, ...]
    text: str = ""


@dataclass(frozen=True)
class End:
    pass


codec = Codec[Line | Point | End](Line | Point | End, parts={"points": Point})


@pytest.mark.parametrize("message", [Line((Point(0.1), Point(2.0)), "two\nlines"), Line(()), Point(1.5), End(), None])
def test_message_survives(message: Line | Point | End | None) -> None:
    """Also in one line of text."""
    data = codec.encode(message)
    assert b"\n" not in data
    assert codec.decode(data) == message


def test_text_is_json_that_names_the_class() -> None:
    assert json.loads(codec.encode(Line((Point(math.inf),)))) == {"kind": "Line", "points": [{"x": None}], "text": ""}
    assert codec.encode(None) == b"null"
    assert codec.decode(codec.encode(Line((Point(math.nan),)))) == Line((Point(None),))
