"""Points at which a test can have this process killed, as `kill -9` would do it, to prove that nothing is lost there.

PBTRL_CRASH_AT=snapshot.renamed:3    dies when it comes to that point for the third time
"""

import os
import signal

_name, _, _count = os.environ.get("PBTRL_CRASH_AT", "").partition(":")
_left = int(_count or 1)


def crash_point(name: str) -> None:
    """Die here, if this is where the environment asks for it."""
    global _left
    if name != _name:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
