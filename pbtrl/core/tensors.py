"""Named arrays: what a snapshot holds, and whether it fits what it is loaded into."""

import numpy as np

from pbtrl.errors import SnapshotError

Tensors = dict[str, np.ndarray]


def check_fit(own: Tensors, found: Tensors) -> None:
    """Compare what a snapshot holds with what it is to be loaded into, before anything is.

    Raises:
        SnapshotError: a tensor is missing or unknown, or of another shape or type.
    """
    ours, theirs = ({name: (v.dtype.name, v.shape or (1,)) for name, v in tensors.items()} for tensors in (own, found))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            here, there = (" ".join(map(str, kinds.get(name, ["missing"]))) for kinds in (ours, theirs))
            raise SnapshotError(f"a snapshot does not fit this agent: {name} is {there} in it, and should be {here}")
