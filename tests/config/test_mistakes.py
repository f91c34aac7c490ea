"""Messages for mistakes in a config: what people type against what mistakes.txt says they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pbtrl.config.load import parse
from pbtrl.errors import ConfigError
from tests.config import example_configs

FILE = Path(__file__).with_name("mistakes.txt")


@dataclass(frozen=True)
class Mistake:
    """A config with mistakes.

    Attributes:
        base: name of the config in example_configs.py.
        lines: lines added to it.
        overrides: changes made by the command line.
        messages: what pbtrl says.
    """

    base: str
    lines: tuple[str, ...]
    overrides: tuple[str, ...]
    messages: tuple[str, ...]

    def report(self) -> tuple[str, ...]:
        """Return what pbtrl says now; nothing if the config loads."""
        text = getattr(example_configs, self.base) + "".join(f"{line}\n" for line in self.lines)
        try:
            parse(text, "c.yaml", self.overrides)
        except ConfigError as error:
            return error.messages
        return ()


def paragraphs() -> list[str]:
    return FILE.read_text("utf-8").rstrip("\n").split("\n\n")


def mistakes() -> Iterator[Mistake]:
    base = ""
    for paragraph in paragraphs():
        lines = paragraph.split("\n")
        if lines[0].startswith("== "):
            base = lines[0][3:]
        elif lines[0][:2] in ("+ ", "$ "):
            yield Mistake(base, *(marked(lines, mark) for mark in ("+ ", "$ ", "-> ")))


def marked(lines: list[str], mark: str) -> tuple[str, ...]:
    return tuple(line.removeprefix(mark) for line in lines if line.startswith(mark))


MISTAKES = list(mistakes())


@pytest.mark.parametrize("mistake", MISTAKES, ids=["; ".join(m.lines + m.overrides) for m in MISTAKES])
def test_mistake_is_reported_with_position(mistake: Mistake) -> None:
    assert mistake.report() == mistake.messages != ()


def main() -> None:
    """Write the messages of today into mistakes.txt."""
    result, texts = mistakes(), []
    for paragraph in paragraphs():
        lines = [line for line in paragraph.split("\n") if not line.startswith("-> ")]
        text = next(result).report() if lines[0][:2] in ("+ ", "$ ") else ()
        texts.append("\n".join([*lines, *(f"-> {message}" for message in text)]))
    FILE.write_text("\n\n".join(texts) + "\n", "utf-8")


if __name__ == "__main__":
    main()
