"""Named points at which tests kill the process, like `kill -9`, to prove that nothing is lost.

PBTRL_CRASH_AT=snapshot.renamed:3    dies when it reaches that point for the third time
"""

import os
import signal

_name, _, _count = os.environ.get("PBTRL_CRASH_AT", "").partition(":")
_left = int(_count or 1)


def crash_point(name: str) -> None:
    """Kill this process if the environment names this point."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
