"""Arguments of the command line that several commands share."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

DAY = 86400  # seconds


def add_command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    """Add a command that calls `function`; `text` is its help."""
    description = text[0].upper() + text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
    parser.set_defaults(command=function, parser=parser)
    return parser


def add_config_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Add the arguments for a config and its overrides."""
    parser.add_argument(
        "config", nargs=nargs, help="a YAML file, or the name of a shipped config (`pbtrl config list`)"
    )
    add_overrides(parser, "settings that override those of the file")


def add_overrides(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the argument for overrides; `text` is its help."""
    parser.add_argument("overrides", nargs="*", default=[], metavar="a.b=value", help=text)


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of all runs."""
    parser.add_argument(
        "--runs", type=parse_path, default=Path("runs"), metavar="DIR", help="folder of all runs (default: runs)"
    )


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument for a run."""
    parser.add_argument("run", help="`last`, the name of a run, a unique prefix of it, or a path")
    add_root(parser)


def add_member(parser: argparse.ArgumentParser) -> None:
    """Add the option for a member whose newest snapshot is meant."""
    parser.add_argument("--member", default="best", metavar="ID", help="best, or an id such as m03 (default: best)")


def add_json(parser: Any) -> None:
    """Add the option for JSON output."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option that permits imports of modules that a run directory names."""
    parser.add_argument(
        "--trust-imports",
        action="store_true",
        help="import the modules that the run's config names; they run their code",
    )


def add_progress(parser: argparse.ArgumentParser) -> None:
    """Add the options for the progress view."""
    parser.add_argument(
        "--progress", choices=["auto", "live", "plain", "json", "none"], default="auto",
        help="a live table, plain lines or JSON lines (default: auto, which is live on a terminal and plain elsewhere)",
    )  # fmt: skip
    parser.add_argument("--wide", action="store_true", help="show all hyperparameters, not only the first three")


def parse_path(text: str) -> Path:
    """Parse a path and expand `~`."""
    if "\0" in text:
        raise argparse.ArgumentTypeError("no path has a zero byte in it")
    return Path(os.path.expanduser(text))


def integer_between(low: int, high: int) -> Any:
    """Return a parser of integers from `low` to `high`."""

    def number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,20}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text[:40]}")
        return int(text)

    return number


def parse_seconds(text: str) -> float:
    """Parse a positive number of seconds, less than a day."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < DAY:
        raise argparse.ArgumentTypeError(f"must be a number of seconds between 0 and {DAY}, not {text[:40]}")
    return number
