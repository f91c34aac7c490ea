"""What a run's members spend outside their slices, from the journal alone.

python docs/overhead.py runs/quickstart

Between two slices of a member lie its snapshot, the report, the decision, the journal, TensorBoard and, after an
exploit, another's snapshot; the rest of its time is acting and learning.
"""

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from pbtrl.core.records import ReportRecord
from pbtrl.storage.journal import read_journal


def overhead(run: Path) -> None:
    """Print the share of the members' time, and how long a slice is."""
    slices: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in read_journal(run / "journal.jsonl"):
        if isinstance(record, ReportRecord):
            slices[record.report.member].append((record.elapsed, record.report.timing["seconds"]))
    shares = []
    for member in slices.values():
        (first, begun), (last, _) = member[0], member[-1]
        shares.append(1 - sum(seconds for _, seconds in member) / (last - first + begun))
    length = statistics.fmean(seconds for member in slices.values() for _, seconds in member)
    print(f"{statistics.fmean(shares):.2%} (at most {max(shares):.2%}) between slices of {length:.1f} s")


if __name__ == "__main__":
    overhead(Path(sys.argv[1]))
