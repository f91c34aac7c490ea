"""Call of a function in a separate process, so that a crash there does not end the caller."""

from __future__ import annotations

import json
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pbtrl.errors import ChildDiedError, DamagedError, DiskFullError, IsolatedCallError
from pbtrl.system.child_process import call_in_child, init_child, redirect_output
from pbtrl.system.imports import import_object
from pbtrl.system.strict_json import to_json

PROCESS_NAME = "isolated call"  # name of the process


def call(function: str, *arguments: Any, log: Path) -> Any:
    """Call `module:function` in a new process; arguments and result are JSON, its output goes to `log`.

    Raises:
        IsolatedCallError: the function raised, or its process died.
        DamagedError, DiskFullError: the function raised this error.
    """
    task = to_json({"function": function, "arguments": arguments, "log": str(log)})
    try:
        answer = json.loads(call_in_child(_answer, task, name=PROCESS_NAME))
    except ChildDiedError as death:
        raise IsolatedCallError(f"its process died ({death})") from None
    if text := answer.get("damaged"):
        raise DamagedError(text)
    if text := answer.get("full"):
        raise DiskFullError(text)
    if text := answer.get("error"):
        error = IsolatedCallError(text)
        error.add_note(answer["trace"])
        raise error
    return answer["result"]


def _answer(pipe: Connection, parent: int, task: str) -> None:
    init_child(parent, pipe)
    request = json.loads(task)
    redirect_output(Path(request["log"]))
    try:
        answer = {"result": import_object(request["function"])(*request["arguments"])}
    except DamagedError as error:
        answer = {"damaged": str(error)}
    except DiskFullError as error:
        answer = {"full": str(error)}
    except (Exception, SystemExit) as error:
        answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    pipe.send_bytes(to_json(answer).encode())
