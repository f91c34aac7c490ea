"""Take the screenshots of docs/watching.md with a headless Chromium: TensorBoard's tabs and the report of a run.

python docs/_site/screenshots.py runs/quickstart
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pbtrl.reporting.html_report as reports
from pbtrl.storage.run_directory import RunDirectory

IMAGES = Path(__file__).parents[1] / "images"
PORT = 6123
TABS = {"tensorboard": "custom_scalars", "hparams": "hparams"}
# A test machine has no network, which Chromium's services would try to reach.
QUIET = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


def take(name: str, address: str, width: int, height: int) -> None:
    """Write a PNG of a page, after 25 seconds of its clock."""
    browser = shutil.which("chromium") or sys.exit("needs chromium")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *QUIET]
        command += [f"--user-data-dir={profile}", f"--window-size={width},{height}", "--virtual-time-budget=25000"]
        target = IMAGES / f"{name}.png"
        subprocess.run([*command, f"--screenshot={target}", address], check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    """Take all of them."""
    run = Path(sys.argv[1]).resolve()
    IMAGES.mkdir(exist_ok=True)
    report, *_ = reports.write_report(RunDirectory(run))
    take("report", report.as_uri(), 1200, 1500)
    command = [sys.executable, "-m", "pbtrl", "tb", str(run), "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://localhost:{PORT}")
        for name, tab in TABS.items():
            take(name, f"http://localhost:{PORT}/#{tab}", 1200, 760)
    finally:
        server.terminate()
        server.wait()


def _wait(address: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"nothing answers on {address}")


if __name__ == "__main__":
    main()
