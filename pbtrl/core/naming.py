"""Names of runs, and ids and roles of members. Imports nothing heavy, so that config errors appear fast."""

import re

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Valid name of a run's directory; those of its members follow the same rule."""

EVALUATOR = "evaluator"
"""Role of members that evaluate others (FIRE PBT). With several kinds of evaluators their roles begin with it."""

INITIAL = "initial/000000"
"""Snapshot that all members of a run with `init_from` begin from. No member is called `initial`."""


def member_id(place: int, size: int) -> str:
    """Id of the member at index `place`: `m07`, with as many digits as the last of the first `size` members needs."""
    return f"m{place:0{max(2, len(str(size - 1)))}d}"


def member_ids(size: int) -> list[str]:
    """Ids of the first `size` members."""
    return [member_id(place, size) for place in range(size)]
