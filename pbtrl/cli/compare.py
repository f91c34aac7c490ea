"""Command that compares runs: `pbtrl compare`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pbtrl.cli.exit_codes import FAILED
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json


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
