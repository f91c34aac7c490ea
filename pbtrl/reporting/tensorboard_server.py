"""TensorBoard's server for a run, in this process and on localhost unless asked, without what it says on its way up."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from pathlib import Path
from typing import Any

from pbtrl.errors import RunError


def serve(logs: Path, port: int | None, *, expose: bool = False) -> int:
    """Serve until Ctrl-C.

    Args:
        logs: the folder with a run per member.
        port: to listen at; None for the first free one from 6006, 0 for any.
        expose: listen on all of this machine's addresses, and warn that nobody is asked for a password.

    Raises:
        RunError: the port is taken.
    """
    from tensorboard import program  # type: ignore[import-untyped]

    board: Any = program.TensorBoard()
    options: dict[str, Any] = {"logdir": str(logs), "host": "0.0.0.0" if expose else "localhost"}
    if expose:
        print("warning: whoever reaches this machine sees these curves: there is no password", file=sys.stderr)
    board.configure(**options | ({} if port is None else {"port": port}))
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            url = board.launch()
    except program.TensorBoardServerException as error:
        raise RunError(str(error.msg)) from None
    print(f"TensorBoard of {logs} on {url} (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0
