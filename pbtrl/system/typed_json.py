"""Dataclasses as JSON, which names the class of each; for the messages between processes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, get_args

from pbtrl.system.strict_json import to_json

Message = TypeVar("Message")


class Codec(Generic[Message]):
    """Converts the dataclasses of a union to bytes and back; a non-finite number comes back as None.

    Args:
        messages: union of dataclasses.
        parts: by the name of a field, the dataclass that its items have.
    """

    def __init__(self, messages: Any, parts: Mapping[str, type] | None = None) -> None:
        self._kinds: dict[str, type] = {kind.__name__: kind for kind in get_args(messages)}
        self._parts = parts or {}

    def encode(self, message: Message | None) -> bytes:
        """A message as one line of JSON; None as null."""
        if message is None:
            return b"null"
        fields = {"kind": type(message).__name__, **vars(message)}  # no copy: `asdict` takes ten times as long
        for name in self._parts.keys() & fields.keys():
            fields[name] = [vars(part) for part in fields[name]]
        return to_json(fields).encode()

    def decode(self, data: bytes) -> Any:
        """The message in bytes that `encode` made; sequences are lists, those of parts tuples."""
        fields = json.loads(data)
        if fields is None:
            return None
        kind = self._kinds[fields.pop("kind")]
        for name, part in self._parts.items():
            if name in fields:
                fields[name] = tuple(part(**values) for values in fields[name])
        return kind(**fields)
