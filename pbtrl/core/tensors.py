"""Named arrays, as stored in snapshots, and the check that they fit a model."""

import numpy as np

from pbtrl.errors import SnapshotError

Tensors = dict[str, np.ndarray]


def mismatch(own: Tensors, loaded: Tensors) -> str | None:
    """Describe the first tensor of a snapshot that is not as a model has it, or that the model or snapshot lacks."""
    ours, theirs = ({name: (v.dtype.name, v.shape or (1,)) for name, v in tensors.items()} for tensors in (own, loaded))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            return f"{name} is missing"
        if name not in ours:
            return f"{name} is unknown"
        if ours[name] != theirs[name]:
            expected, actual = (f"{dtype} {shape}" for dtype, shape in (ours[name], theirs[name]))
            return f"{name} is {actual}, not {expected}"
    return None


def check_fit(own: Tensors, loaded: Tensors) -> None:
    """Check that a snapshot's tensors match a model's in names, shapes and types, before loading any of them.

    Raises:
        SnapshotError: a tensor is missing, unknown, or of another shape or type.
    """
    if difference := mismatch(own, loaded):
        raise SnapshotError(f"the snapshot does not fit this config: {difference}")
