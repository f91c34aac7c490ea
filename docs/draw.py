"""Draw a run: training fitness of every member, and the schedules of its hyperparameters, from the journal alone.

python docs/draw.py runs/quickstart docs/quickstart.png       (needs matplotlib, in the dev extra)
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from pbtrl.header import split
from pbtrl.journal import read
from pbtrl.lineage import ancestry, copies


def draw(run: Path, out: Path) -> None:
    """Write the picture; the best member's ancestry is drawn in bold."""
    lines = list(read(run / "journal.jsonl"))
    header, _ = split(lines)
    population = header.population().replay(lines)
    names = header.hyperparameters
    figure, axes = plt.subplots(1, 1 + len(names), figsize=(4 * (1 + len(names)), 3.2), constrained_layout=True)
    reports = [line for line in lines if line["kind"] == "report"]
    colours = {m: plt.get_cmap("tab10")(i % 10) for i, m in enumerate(population.members)}
    for member in population.members.values():
        points = [(s / 1000, f) for s, f in member.history if f is not None]
        axes[0].plot(*zip(*points, strict=True), color=colours[member.id], lw=1.2, label=member.id)
        mine = [r for r in reports if r["member"] == member.id]
        for axis, name in zip(axes[1:], names, strict=True):
            steps = [r["step"] / 1000 for r in mine]
            axis.step(steps, [r["hyperparameters"][name] for r in mine], color=colours[member.id], lw=1, where="pre")
    best = population.best
    if best:
        path = ancestry(lines, best.id)
        for axis, name in zip(axes[1:], names, strict=True):
            axis.step(
                [s.stop / 1000 for s in path],
                [s.hyperparameters[name] for s in path],
                color="black",
                lw=2.2,
                where="pre",
            )
    for copy in copies(lines):
        axes[0].axvline(copy["env_steps"] / 1000, color="0.85", lw=0.6, zorder=0)
    axes[0].set(title="fitness (mean training return)", xlabel=f"thousand {header.steps} of the member")
    axes[0].legend(fontsize=7, ncols=2)
    for axis, name in zip(axes[1:], names, strict=True):
        axis.set(title=name, xlabel=f"thousand {header.steps} of the member")
        values = [r["hyperparameters"][name] for r in reports]
        if min(values) > 0 and max(values) / min(values) > 20:
            axis.set_yscale("log")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
