"""Command that compares runs: `pbtrl compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pbtrl.cli.arguments import add_command, add_json, add_root, parse_path
from pbtrl.cli.exit_codes import FAILED
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json


def add_compare(commands: Any) -> None:
    """Add the command."""
    compare = add_command(
        commands, "compare", run_compare,
        "compare strategies, agents or configs by their runs: a table with intervals, and a page with curves",
    )  # fmt: skip
    compare.add_argument(
        "selected", nargs="+", metavar="RUN|FOLDER",
        help="runs (`last`, names, unique prefixes, paths), or a folder of runs such as that of a sweep",
    )  # fmt: skip
    compare.add_argument(
        "--metric", default="score",
        help="score (of the chosen member), fitness, median, or steps_to=VALUE (default: score)",
    )  # fmt: skip
    compare.add_argument(
        "--out", type=parse_path, metavar="FILE",
        help="page to write (default: compare.html in the folder of the runs, for a list of runs in this directory)",
    )  # fmt: skip
    form = compare.add_mutually_exclusive_group()
    add_json(form)
    form.add_argument("--markdown", action="store_true", help="print Markdown, to paste")
    add_root(compare)


def run_compare(a: argparse.Namespace) -> int:
    """Compare groups of runs, print a table and write a page."""
    from pbtrl.reporting.comparison.comparison import compare

    comparison = compare(a.selected, a.runs, a.metric)
    command = [Path(sys.argv[0]).name.replace("__main__.py", "pbtrl"), *sys.argv[1:]]
    page = comparison.save(a.out, command)
    if a.json:
        tell(to_json({**comparison.to_json(), "page": str(page)}))
    elif a.markdown:
        tell(comparison.markdown(command))
        tell(str(page), sys.stderr)
    else:
        tell(f"{comparison}\n\n{page}")
    return 0 if comparison.runs else FAILED
