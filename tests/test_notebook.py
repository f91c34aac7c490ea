"""The notebook runs, and interrupting a kernel stops a run that the next cell continues."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import ROOT, descendants, kinds

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
jupyter_client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

NOTEBOOK = ROOT / "docs/notebooks/quickstart.ipynb"
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::ResourceWarning", "default::FutureWarning"),
    pytest.mark.usefixtures("without_debugger_note"),
]

TRAIN = """
import pbtrl
run = pbtrl.train("cartpole", name="interrupted", overrides=[
    "population.size=2", "budget.env_steps_per_member=60_000", "strategy.ready.slice_steps=5_000",
    "final={candidates: 1, selection_episodes: 2, episodes: 2}",
])
print(run.status()["state"])
"""


@pytest.fixture
def without_debugger_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """A kernel's manager and a client of it."""
    manager, client = jupyter_client.manager.start_new_kernel(cwd=str(tmp_path))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def printed(client: Any, code: str) -> str:
    """What a cell prints; an error fails the test."""
    texts: list[str] = []
    done = client.execute_interactive(
        code, timeout=200, output_hook=lambda m: texts.append(m["content"].get("text", ""))
    )
    assert done["content"]["status"] == "ok", done["content"]
    return "".join(texts).strip()


def test_notebook_is_stored_without_outputs_and_leads_to_pages() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)
    links = re.findall(r"\]\(([^)]+)\)", "".join("".join(cell["source"]) for cell in cells))
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(tmp_path)}}).execute()
    results = [
        output["data"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output["output_type"] in ("execute_result", "display_data")
    ]
    texts = [data.get("text/plain", "") for data in results]
    assert texts[0] == "'finished'"
    assert sum("image/png" in data for data in results) == 2
    assert (
        float(texts[-1].removeprefix("np.float64(").rstrip(")")) > 100
    )  # one episode of CartPole; random ones last 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_interrupt_stops_and_the_next_cell_continues(tmp_path: Path, kernel: tuple[Any, Any]) -> None:
    manager, client = kernel
    run = tmp_path / "runs/interrupted"
    before = set(descendants(manager.provisioner.pid))
    request = client.execute(TRAIN)
    deadline = time.monotonic() + 200
    while not (run / "journal.jsonl").exists() or "report" not in kinds(run):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    manager.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != request:
        pass
    assert reply["content"]["status"] == "ok", reply["content"]
    assert kinds(run)[-1] == "stop"
    names = {Path(f"/proc/{pid}/cmdline").read_text() for pid in set(descendants(manager.provisioner.pid)) - before}
    assert [name for name in names if "resource_tracker" not in name] == []  # Python's own, which ends with the kernel
    assert printed(client, "print(run.status()['state'])") == "stopped"
    assert printed(client, "run = pbtrl.resume(run.path); print(run.status()['state'])") == "finished"
    assert printed(client, "print(run.best['evaluation']['episodes'])") == "2"
    assert kinds(run)[-1] == "finish"
