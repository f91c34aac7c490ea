"""A function in a process of its own: whatever happens to it there, a crash or a hang, the caller goes on."""

from __future__ import annotations

import importlib
import json
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pbtrl.errors import ChildDiedError, DamagedError, DiskFullError, IsolatedCallError
from pbtrl.system.child_process import call_in_child, init_child, redirect_output
from pbtrl.system.strict_json import to_json

NAME = "apart"  # of the process


def call(function: str, *arguments: Any, log: Path) -> Any:
    """What `module:function` answers to these arguments, all of it JSON; what it prints goes to `log`.

    Raises:
        IsolatedCallError: see above.
        DamagedError, DiskFullError: as the function did.
    """
    task = to_json({"function": function, "arguments": arguments, "log": str(log)})
    try:
        answer = json.loads(call_in_child(_answer, task, name=NAME))
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
    asked = json.loads(task)
    redirect_output(Path(asked["log"]))
    module, function = asked["function"].split(":")
    try:
        answer = {"result": getattr(importlib.import_module(module), function)(*asked["arguments"])}
    except DamagedError as error:
        answer = {"damaged": str(error)}
    except DiskFullError as error:
        answer = {"full": str(error)}
    except (Exception, SystemExit) as error:
        answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    pipe.send_bytes(to_json(answer).encode())
