"""Standard streams that are closed, redirected by a program, or whose reader has gone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pbtrl.reporting import terminal
from pbtrl.reporting.terminal import _Terminal
from pbtrl.system import streams
from tests.command import ROOT, kinds

TOY = ["toy_quadratic", "execution={backend: processes, workers: 1}", "budget.env_steps_per_member=20"]
TRAIN = [sys.executable, "-m", "pbtrl", "train", *TOY]
LIBRARY = """
import sys
CHANGE
import pbtrl

pbtrl.train("toy_quadratic", overrides={overrides!r}, name="toy_quadratic", progress="plain")
""".replace("{overrides!r}", repr(TOY[1:]))


def shell(where: Path, line: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """A command with redirections, as a shell's user writes them."""
    return subprocess.run(
        ["sh", "-c", line, "sh", *argv],
        cwd=where, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


@pytest.mark.parametrize(
    "closed",
    [">&-", "<&- >&- 2>&-", *(pytest.param(one, marks=pytest.mark.slow) for one in ("<&-", "2>&-"))],
)
def test_run_trains_with_closed_streams(tmp_path: Path, closed: str):
    """Its worker and its final choice are processes that inherit them."""
    result = shell(tmp_path, f'exec "$@" {closed}', *TRAIN)
    assert (result.returncode, result.stderr) == (0, "")
    assert bool(result.stdout) == (">&-" not in closed.split())
    assert "failure" not in kinds(tmp_path / "runs/toy_quadratic")
    assert (tmp_path / "runs/toy_quadratic/best.json").exists()


@pytest.mark.parametrize(
    ("change", "redirection"),
    [("", "<&- >&- 2>&-"), ("sys.stdin = sys.stdout = sys.stderr = None", "")],
    ids=["closed", "None"],
)
def test_library_trains_without_streams(tmp_path: Path, change: str, redirection: str):
    """As under pythonw, where all three are None."""
    (tmp_path / "script.py").write_text(LIBRARY.replace("CHANGE", change))
    result = shell(tmp_path, f'exec "$@" {redirection}', sys.executable, "script.py")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert "failure" not in kinds(tmp_path / "runs/toy_quadratic")


def test_closed_descriptors_become_inheritable_null_devices(tmp_path: Path):
    code = (
        "from pbtrl.system import streams; streams.reopen()\n"
        "import subprocess, sys\n"
        "subprocess.run(['sh', '-c', 'ls -l /proc/$$/fd | grep -c \"[012] -> /dev/null\" >&3; :'], pass_fds=[3])\n"
        "print('x'); print('y', file=sys.stderr); sys.stdin.read()"
    )
    result = shell(tmp_path, 'exec "$@" 3>told <&- >&- 2>&-', sys.executable, "-c", code)
    assert result.returncode == 0
    assert (tmp_path / "told").read_text() == "3\n"


def test_character_outside_the_encoding_is_escaped(tmp_path: Path):
    line = 'PYTHONIOENCODING=ascii exec "$@"'
    result = shell(tmp_path, line, *TRAIN, "--runs", "dé")
    assert (result.returncode, result.stderr) == (0, "")
    assert "d\\xe9/toy_quadratic" in result.stdout
    assert (tmp_path / "dé/toy_quadratic/best.json").exists()


def test_open_streams_are_unchanged(capfd: pytest.CaptureFixture[str]):
    before = sys.stdin, sys.stdout, sys.stderr, sys.stdout.errors
    streams.reopen()
    assert (sys.stdin, sys.stdout, sys.stderr, sys.stdout.errors) == before


@pytest.mark.parametrize(
    "command", ["config schema", "list --json", "train toy_quadratic budget.env_steps_per_member=20"]
)
def test_closed_reader_is_no_error(tmp_path: Path, command: str):
    line = f'{{ "$0" -m pbtrl {command}; echo $? >code; }} | true'
    result = subprocess.run(
        ["sh", "-c", line, sys.executable],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert ((tmp_path / "code").read_text(), result.stderr) == ("0\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device without room")
def test_output_on_a_full_disk_is_reported(tmp_path: Path):
    result = shell(tmp_path, 'exec "$@" >/dev/full', sys.executable, "-m", "pbtrl", "list", "--json")
    assert (result.returncode, result.stderr) == (75, "standard output: No space left on device\n")


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "gone"), OSError(errno.EIO, "gone")])
def test_live_view_survives_a_closed_reader(monkeypatch: pytest.MonkeyPatch, error: OSError):
    """Rich would end the process when the reader of a pipe is gone."""
    drawn = []

    class Gone(_Terminal):
        def _write_buffer(self) -> None:
            drawn.append(1)
            raise error

    monkeypatch.setattr(terminal, "live_table", lambda *_, **__: "x")
    live = terminal.make_view("live", _Standing(), workers="", console=Gone(force_terminal=True))  # type: ignore[arg-type]
    live.tick()
    first = len(drawn)
    monkeypatch.setattr(terminal, "REDRAW", 0.0)
    for _ in range(5):
        live.tick()
    assert len(drawn) == first > 0
    live.stopping()
    live.close()


class _Standing:
    def refresh(self) -> None:
        """Nothing is new."""
