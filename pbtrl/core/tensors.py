"""Named arrays, as stored in snapshots, and the check that they fit a model."""

import numpy as np

from pbtrl.errors import SnapshotError

Tensors = dict[str, np.ndarray]


def check_fit(own: Tensors, loaded: Tensors) -> None:
    """Check that a snapshot's tensors match a model's in names, shapes and types, before loading any of them.

    Raises:
        SnapshotError: a tensor is missing, unknown, or of another shape or type.
    """
    ours, theirs = ({name: (v.dtype.name, v.shape or (1,)) for name, v in tensors.items()} for tensors in (own, loaded))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            expected, actual = (" ".join(map(str, kinds.get(name, ["missing"]))) for kinds in (ours, theirs))
            raise SnapshotError(f"the snapshot does not fit this agent: {name} is {actual}, expected {expected}")
