"""TensorBoard server for a run, in this process and by default on localhost."""

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
        logs: directory with one TensorBoard run per member.
        port: port; None for the first free one from 6006, 0 for any.
        expose: whether to listen on all addresses of this machine, with a warning that there is no password.

    Raises:
        RunError: the port is in use.
    """
    from tensorboard import program  # type: ignore[import-untyped]

    board: Any = program.TensorBoard()
    options: dict[str, Any] = {"logdir": str(logs), "host": "0.0.0.0" if expose else "localhost"}
    if expose:
        print("warning: anyone who can reach this machine can see these curves: no password", file=sys.stderr)
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
