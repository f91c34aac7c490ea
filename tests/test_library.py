"""pbtrl called from programs: without a main guard, from a REPL or a heredoc, from a thread, from a child process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from pbtrl import cli, session
from pbtrl.config import checked, read
from pbtrl.execution.inline import Inline
from tests.command import ROOT, Command, kinds, spawn_of  # noqa: F401

TOY = ["budget.env_steps_per_member=20", "name=null"]
APART = "execution={backend: processes, workers: 1}"

SESSION = f"""
print("imported", flush=True)
from pathlib import Path
from pbtrl import session
from pbtrl.config import checked, read

source = read("quadratic", {[*TOY, APART]!r})
code = session.start(checked(source), source, root=Path("runs"), if_exists="error", mode="plain", command=[])
"""
COMMAND = f"""
print("imported", flush=True)
from pbtrl import cli

code = cli.main({["train", "quadratic", *TOY, APART]!r})
"""
