"""What worker processes of tests have imported when they are forked; see `warm_workers` in conftest.py.

Nothing here may run torch.
"""

import importlib
import os

for module in (
    "pbtrl.agents.impala",
    "pbtrl.build.worker_entry",
    "pbtrl.diagnostics.bench_worker",
    "pbtrl.execution.worker",
    "pbtrl.rl.actors",
    "pbtrl.rl.evaluation",
    "pbtrl.rl.hogwild",
    "scipy.special",
):
    importlib.import_module(module)

PARENT = os.getppid()
os.getppid = lambda: PARENT  # of those who are forked, as if they were started from there
