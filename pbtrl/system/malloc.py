"""Where a process that learns gets its memory from.

Every update takes and frees the same tensors. By default the C library gives much of what was freed back to the system,
whose pages then have to be cleared and mapped anew: at 2 microseconds each, up to a fifth of an update.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**30  # bytes; what is larger comes from the system each time


def retain_freed_memory() -> None:
    """From now on this process keeps what it frees, for itself. Only glibc can do that; others are left as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if mallopt(_MMAP_THRESHOLD, LARGEST):  # without it, the other would do harm
        mallopt(_TRIM_THRESHOLD, -1)
