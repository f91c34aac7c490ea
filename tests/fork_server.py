"""Run commands of pbtrl in forked processes, which need not import torch again.

Each line of stdin is a JSON object {"number": any, "where": directory, "argv": [...], "crash": "point:count" or "",
"stop": send SIGTERM as soon as there is a journal}. Each line of stdout answers one: {"number": the same, "code": exit
code, negative for a signal, "err": stderr}. Nothing here may run torch before it forks.
"""

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pbtrl.cli import main as cli
from pbtrl.system import crash_points

for module in (
    "pbtrl.agents.impala",
    "pbtrl.build.factory",
    "pbtrl.execution.processes",
    "pbtrl.rl.actors",
    "pbtrl.rl.evaluation",
    "pbtrl.rl.hogwild",
    "pbtrl.strategies.pbt",
    "pbtrl.training.session",
    "pbtrl.training.start",
    "scipy.special",
    "tensorboard.plugins.hparams.metadata",
    "tensorboard.summary.writer.event_file_writer",
):
    importlib.import_module(module)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Run a command in a fork."""
    log = os.path.join(task["where"], "stderr.txt")
    pid = os.fork()
    if not pid:
        os.chdir(task["where"])
        for number, name in ((1, os.devnull), (2, log)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ["PBTRL_CRASH_AT"] = task["crash"]
        os.fsync = lambda descriptor: None  # the kernel keeps what a killed process wrote
        importlib.reload(crash_points)
        code = 1
        try:
            code = cli.main(task["argv"])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.stderr.flush()
            os._exit(code)
    if task["stop"]:
        while not any(path.stat().st_size for path in Path(task["where"]).glob("runs/*/journal.jsonl")):
            time.sleep(0.001)
        os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    with open(log) as file:
        return {"number": task["number"], "code": os.waitstatus_to_exitcode(status), "err": file.read()}


if __name__ == "__main__":  # and not where a fork's workers import it again
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
