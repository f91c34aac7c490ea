"""What a terminal shows of a run: a live table, plain lines, or lines of JSON.

opening(...)   a few lines before it starts
view(...)      a listener of the controller for the time between
summary(...)   the best member, the schedule that was found, and what to do next
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pbtrl.core.dimensions import AGENT
from pbtrl.core.population import Population, mean
from pbtrl.errors import printable
from pbtrl.figures import clock, count, mixture, rank_score, score, value
from pbtrl.lineage import ancestry, schedule, stretches
from pbtrl.standings import Event, Row, Standings
from pbtrl.storage.journal import Line, read_journal
from pbtrl.storage.run_header import RunHeader, read_header
from pbtrl.system.strict_json import to_json
from pbtrl.tables import truncation

Mode = Literal["auto", "live", "plain", "json", "none"]

REDRAW = 0.25  # seconds
LINE_EVERY = 30.0  # seconds between two lines of `plain` and `json`
MANY = 20  # members, above which the table shows the first and the last
EVENTS = 6
HINT = "Ctrl-C: save and stop"
STOPPING = "saving all members (Ctrl-C again: end at once, unsaved)"
BARS = "▁▂▃▄▅▆▇█"
EVENT_STYLES = {
    "copy": "cyan",
    "diverged": "red",
    "given_up": "red",
    "lost": "red",
    "failure": "yellow",
    "skipped": "yellow",
}
STATES = {"train": "", "waiting": "dim", "done": "green", "diverged": "red", "given up": "red"}  # else cyan


class View(Protocol):
    """A listener of the controller that ends."""

    def event(self, line: Line) -> None:
        """A line was written to the journal and recorded."""

    def tick(self) -> None:
        """Called a few times a second."""

    def stopping(self) -> None:
        """A signal came: members are being saved."""

    def close(self) -> None:
        """Leave the terminal in order; a second time does nothing."""


def view(mode: Mode, standings: Standings, *, workers: str, console: Console | None = None, wide: bool = False) -> View:
    """The view for `--progress`; `auto` is `live` on a terminal that can show it and `plain` elsewhere.

    Args:
        mode: `auto`, `live`, `plain`, `json` or `none`.
        standings: where the run stands.
        workers: "8 members on 2 workers".
        console: standard output unless given.
        wide: show every hyperparameter instead of the first three.
    """
    console = console or _Terminal()
    if mode == "auto":
        mode = "live" if _can_redraw(console) else "plain"
    match mode:
        case "live":
            return LiveView(standings, workers, console, wide=wide)
        case "plain":
            return LinesView(standings, console, _plain_line, _plain_event, f"          {STOPPING}")
        case "json":
            return LinesView(standings, console, _json_line, _json_event, '{"kind": "stopping"}')
        case _:
            return Silent()


class _Terminal(Console):
    """A console whose reader may go: Rich's own ends the process then."""

    def on_broken_pipe(self) -> None:
        """Raise what Rich caught, as it does when a terminal fails in another way."""
        raise BrokenPipeError


class Silent:
    """Shows nothing."""

    def event(self, line: Line) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Nothing."""

    def stopping(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LinesView:
    """A line now and then, and one for every event; for logs and pipes."""

    def __init__(
        self,
        standings: Standings,
        console: Console,
        line: Callable[[Standings], str],
        event: Callable[[Event], str],
        stopping: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._standings, self._console, self._now = standings, console, now
        self._line, self._event, self._stopping = line, event, stopping
        self._told, self._closed = now(), False

    def event(self, line: Line) -> None:
        """Tell what is worth telling of a journal line."""
        for event in self._standings.event(line):
            self._print(self._event(event))

    def tick(self) -> None:
        """Tell where the run stands, every half minute."""
        self._standings.refresh()
        if self._now() - self._told >= LINE_EVERY:
            self._told = self._now()
            self._print(self._line(self._standings))

    def stopping(self) -> None:
        """Say that the members are being saved."""
        self._print(self._stopping)

    def close(self) -> None:
        """Tell once more where the run stands."""
        if not self._closed:
            self._closed = True
            self._standings.refresh()
            self._print(self._line(self._standings))

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # `pbtrl train | head` goes on training, also without its terminal
            self._console.file.write(printable(text) + "\n")
            self._console.file.flush()


class LiveView:
    """A table that is redrawn four times a second, with the last events below."""

    def __init__(self, standings: Standings, workers: str, console: Console, *, wide: bool = False) -> None:
        self._standings, self._workers, self._console, self._wide = standings, workers, console, wide
        self._events: list[Event] = []
        self._hint = HINT
        self._drawn = -math.inf
        self._live = Live(console=console, auto_refresh=False)
        self._closed = False

    def event(self, line: Line) -> None:
        """Keep what is worth telling of a journal line."""
        self._events = (self._events + self._standings.event(line))[-EVENTS:]

    def tick(self) -> None:
        """Redraw."""
        self._standings.refresh()
        if time.monotonic() - self._drawn >= REDRAW:
            self._drawn = time.monotonic()
            try:
                self._live.start()  # nothing is hidden or redirected before the first frame
                self._live.update(self._picture(), refresh=True)
            except OSError:  # the terminal went away, and Rich would keep every frame for it
                self._drawn = math.inf

    def stopping(self) -> None:
        """Say that the members are being saved."""
        self._hint, self._drawn = STOPPING, -math.inf
        self.tick()

    def close(self) -> None:
        """Leave the last state of the table on the screen."""
        if not self._closed:
            self._closed, self._hint, self._drawn = True, "", -math.inf
            self.tick()
            with contextlib.suppress(OSError):
                self._live.stop()

    def _picture(self) -> Group:
        frame = self._standings, self._events, self._workers, self._console
        return picture(*frame, wide=self._wide, hint=self._hint)


def picture(
    standings: Standings, events: Sequence[Event], workers: str, console: Console, *,
    wide: bool = False, hint: str = HINT,
) -> Group:  # fmt: skip
    """One frame of the live view, fitted to the console's width and height."""
    rows = standings.rows()
    searched = standings.header.hyperparameters
    names = searched if wide else searched[:3]
    agents = standings.population.agents
    shown = _selection(rows, min(MANY, max(6, console.height - EVENTS - 6)))
    for cut in range(len(names) + 3):  # the narrower the terminal, the less is shown
        kept = names[: len(names) - max(0, cut - 2)]
        columns = _columns(rows, shown, kept, standings.header.rule.window, narrow=cut >= 2)
        if agents:
            columns.insert(2, _agents(rows, shown))
        gap = 2 if cut == 0 else 1
        if sum(c.width + gap for c in columns) - gap <= console.width:
            break
    table = _lines(columns, gap)
    told = [Text(printable(f"{clock(e.elapsed):>9}  {e.text}"), no_wrap=True, overflow="ellipsis") for e in events]
    for line, event in zip(told, events, strict=True):
        line.stylize(EVENT_STYLES.get(event.kind, ""))
    workers = f"{workers}: {mixture(agents)}" if agents else workers
    foot = Text(workers + " " * max(2, console.width - len(workers) - len(hint)) + hint, style="dim")
    foot.no_wrap, foot.overflow = True, "ellipsis"
    foot.rstrip()
    return Group(_head(standings, console.width), *table, *told, foot)


def opening(
    run: Path,
    header: RunHeader,
    *,
    trains: str,
    agent: str | None,
    workers: str,
    slices: str | None = None,
    wall_clock: float | None = None,
    resumed: Population | None = None,
    found: Sequence[str] = (),
    name: str | None = None,
) -> str:
    """The lines before a run starts.

    Args:
        run: its directory.
        header: of the run.
        trains: environment and spaces: "ALE/Pong-v5, 4x84x84 -> 6 actions, sticky".
        agent: "impala shallow, 0.6M parameters", in a mix a line for each; None outside RL.
        workers: "8 members on 2 workers, 16 envs each".
        slices: "48,000 env steps each".
        wall_clock: seconds, or None.
        resumed: where an earlier sitting left off.
        found: what there is of each member to go on from, a line each.
        name: what the run is called on the command line; that of its directory unless given.
    """
    name = name or run.name
    budget = f"{count(header.horizon)} {header.steps} per member, {count(header.budget)} in all"
    if header.frames_per_step > 1:
        budget += f" ({count(header.budget * header.frames_per_step)} frames)"
    if wall_clock is not None:
        budget += f", at most {clock(wall_clock)}"
    lines = {
        "run": str(run),
        "trains": trains,
        "agent": agent,
        "population": workers,
        "budget": budget,
        "slices": slices,
        "resumed": "\n".join([_left_off(resumed, header), *found]) if resumed else None,
        "seed": f"{header.seed}; deterministic: {header.deterministic}",
        "watch": f"pbtrl status {name} | pbtrl tb {name}; Ctrl-C saves and stops",
    }
    return labelled({key: text for key, text in lines.items() if text})


def _left_off(population: Population, header: RunHeader) -> str:
    done = f"{count(population.step)} of {count(header.budget)} {header.steps} are done"
    again = len(population.open)
    return (
        f"{done}; {again} slice{'s' if again > 1 else ''} under way begin{'' if again > 1 else 's'} again"
        if again
        else done
    )


def summary(best: Mapping[str, Any], run: Path, name: str = "last", trusting: str = "last") -> str:
    """The lines after a run: what was found and what to do next.

    Args:
        best: the content of best.json: `member`, `snapshot` and `evaluation` with `return_mean`, `ci95` (low,
            high) and `episodes`.
        run: the run directory.
        name: what the run is called on the command line.
        trusting: the same for commands that run its env.
    """
    header, lines = read_header(read_journal(run / "journal.jsonl"))
    commands = f"pbtrl tb {name} | pbtrl eval {trusting} | pbtrl report {name}"
    return f"{labelled({'run': str(run)})}\n{outcome(best, header, lines)}\n{labelled({'next': commands})}"


def outcome(best: Mapping[str, Any], header: RunHeader, lines: Sequence[Line]) -> str:
    """The best member, its score, the schedule that made it, and how long the run took; `best` as in `summary`."""
    elapsed = max((line["timing"]["elapsed"] for line in lines if "elapsed" in line.get("timing", {})), default=0.0)
    told = {"best": _best(best, "mean return" if header.unit == "env_steps" else "fitness")}
    points = schedule(ancestry(stretches(lines), best.get("snapshot")))
    for i, (tuned, values) in enumerate(_changes(points).items()):
        told["schedule" if i == 0 else " " * i] = f"{tuned} {values}"
    if points and (ends := header.at_bound(points[-1][1])):
        told["bounds"] = "\n".join(_at_bound(name, points[-1][1][name], end) for name, end in ends.items())
    told["wall time"] = clock(elapsed)
    return labelled(told)


def sparkline(history: Sequence[float | None], low: float, high: float, width: int = 10) -> str:
    """A history as bars on the scale from `low` to `high`, averaged to `width`; absent values are blank."""
    cells = []
    for i in range(min(width, len(history))):
        a, b = (len(history) * j // min(width, len(history)) for j in (i, i + 1))
        known = [x for x in history[a:b] if x is not None]
        height = mean(known) if known else math.nan
        cells.append(_bar(height, low, high) if math.isfinite(height) else " ")
    return "".join(cells)


def _bar(x: float, low: float, high: float) -> str:
    place = (x - low) / (high - low) if high > low else 0.0
    return BARS[round(min(1.0, max(0.0, place)) * (len(BARS) - 1))]


def _can_redraw(console: Console) -> bool:
    utf8 = console.encoding.lower().replace("-", "") == "utf8"
    return console.file.isatty() and not console.is_dumb_terminal and not os.environ.get("CI") and utf8


def _head(standings: Standings, width: int) -> Text:
    """Where the run stands, in the fuller of two forms that fits."""
    header = standings.header
    done, budget = count(standings.step), count(header.budget)
    share = f"({100 * standings.step / max(1, header.budget):.0f} %)"
    rate = f"{count(standings.rate)} steps/s" if standings.rate is not None else "- steps/s"
    elapsed, left = clock(standings.elapsed), clock(standings.left) if standings.left is not None else "-"
    steps = f"{done} / {budget} {header.steps} {share}"
    full = [header.name, f"gen {max(0, standings.generation)}", steps, rate, f"{elapsed} elapsed", f"{left} left"]
    short = [f"{done} / {budget} {share}", rate, elapsed, f"{left} left"]
    text = " · ".join(full)
    if len(text) > width:
        rest = " · ".join(short)
        text = f"{header.name[: max(1, width - len(rest) - 3)]} · {rest}"
    return Text(printable(text), style="bold", no_wrap=True, overflow="ellipsis")


def _selection(rows: Sequence[Row], room: int) -> list[int | None]:
    """Places of the rows to show; None stands for those left out."""
    if len(rows) <= room:
        return list(range(len(rows)))
    top = min(8, max(2, 2 * (room - 1) // 3))
    bottom = min(4, max(1, room - 1 - top))
    return [*range(top), None, *range(len(rows) - bottom, len(rows))]


def _scale(rows: Sequence[Row]) -> tuple[float, float]:
    known = [x for row in rows for x in row.history if x is not None]
    return min(known, default=0.0), max(known, default=0.0)


@dataclass(frozen=True)
class _Column:
    """A title of one or two lines and (text, style) per row. Rich's own tables take six times as long."""

    title: str
    cells: list[tuple[str, str]]
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(len, [*self.title.split("\n"), *(text for text, _ in self.cells)]))

    def fitted(self, text: str, gap: int) -> str:
        text = printable(text)
        return (text.ljust(self.width) if self.left else text.rjust(self.width)) + " " * gap


def _lines(columns: Sequence[_Column], gap: int) -> list[Text]:
    lines = []
    for i in (0, 1):
        titles = [f"\n{c.title}".split("\n")[-2:][i] for c in columns]
        lines.append(Text("".join(c.fitted(t, gap) for c, t in zip(columns, titles, strict=True)), style="dim"))
    for i in range(len(columns[0].cells)):
        lines.append(Text.assemble(*((c.fitted(c.cells[i][0], gap), c.cells[i][1]) for c in columns)))
    for line in lines:
        line.rstrip()
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines if any("\n" in c.title for c in columns) else lines[1:]


def _columns(
    rows: Sequence[Row], shown: Sequence[int | None], names: Sequence[str], window: int, *, narrow: bool
) -> list[_Column]:
    scale, hidden = _scale(rows), [row for i, row in enumerate(rows) if i not in shown]
    medians = [(text, "dim") for text in _medians(hidden, names, narrow=narrow)] if hidden else []
    table = [
        medians if place is None else _cells(place, rows[place], names, scale, 6 if narrow else 10) for place in shown
    ]
    titles = ["#", "member", f"fitness({window})", "", *(name.replace("_", "\n", 1) for name in names)]
    titles += ["steps", "steps/s", "gen", "state"]
    left = {"member", "state", ""}
    return [_Column(t, [line[i] for line in table], left=t in left) for i, t in enumerate(titles)]


def _agents(rows: Sequence[Row], shown: Sequence[int | None]) -> _Column:
    """What each member is, in a population of several agents."""
    cells = []
    for place in shown:
        row = None if place is None else rows[place]
        text = "" if row is None else str(row.hyperparameters.get(AGENT, "-"))
        cells.append((text, "yellow" if row and AGENT in row.changed else ""))
    return _Column(AGENT, cells, left=True)


def _cells(place: int, row: Row, names: Sequence[str], scale: tuple[float, float], width: int) -> list[tuple[str, str]]:
    return [
        (str(place + 1), ""),
        (row.member, "bold"),
        (rank_score(row.fitness, before_copy=row.before_copy), "dim" if row.before_copy else ""),
        (sparkline(row.history, *scale, width=width), "green"),
        *(_hyperparameter(row, name) for name in names),
        (count(row.step), ""),
        ("-" if row.rate is None else count(row.rate), ""),
        (str(max(0, row.generation)), ""),
        (row.state, STATES.get(row.state, "cyan")),
    ]


def _hyperparameter(row: Row, name: str) -> tuple[str, str]:
    """The value and a place for an arrow, so that the digits stay in line."""
    if name not in row.hyperparameters:
        return "-  ", "dim"
    new, old = row.hyperparameters[name], row.changed.get(name)
    if name not in row.changed:
        return f"{value(new)}  ", ""
    ordered = isinstance(new, int | float) and isinstance(old, int | float)
    arrow = ("↑" if new > old else "↓") if ordered else "*"
    return f"{value(new)} {arrow}", "yellow"


def _medians(rows: Sequence[Row], names: Sequence[str], *, narrow: bool) -> list[str]:
    """One row for those left out: the median of everything, and the quartiles of their fitness."""
    known = sorted(row.fitness for row in rows if row.fitness is not None)
    first, _, third = statistics.quantiles(known, n=4) if len(known) > 1 else [*known, 0.0][:1] * 3
    return [
        "…",
        f"+{len(rows)}",
        score(statistics.median(known) if known else None),
        "" if narrow or not known else f"{score(first)} … {score(third)}",
        *(_median([row.hyperparameters.get(name) for row in rows]) for name in names),
        count(statistics.median(row.step for row in rows)),
        "",
        f"{statistics.median(row.generation for row in rows):.0f}",
        "medians",
    ]


def _median(values: Sequence[object]) -> str:
    numbers = [x for x in values if isinstance(x, int | float) and not isinstance(x, bool)]
    return f"{value(float(statistics.median(numbers)))}  " if numbers else "-  "


def _plain_line(standings: Standings) -> str:
    header, best = standings.header, standings.population.best
    share = 100 * standings.step / max(1, header.budget)
    known = _fitnesses(standings)
    parts = [
        f"{clock(standings.elapsed):>9}",
        f"{count(standings.step)} / {count(header.budget)} {header.steps} ({share:.0f} %)",
        f"{count(standings.rate)} steps/s" if standings.rate is not None else "",
        f"gen {max(0, standings.generation)}",
        f"best {best.id} {score(best.fitness)}  median {score(statistics.median(known))}" if best else "",
        f"{clock(standings.left)} left" if standings.left else "",
        mixture(standings.population.agents),
    ]
    return "  ".join(part for part in parts if part)


def _fitnesses(standings: Standings) -> list[float]:
    """Of the members that have one of their own, not one from before a copy."""
    return [r.fitness for r in standings.rows() if r.fitness is not None and not r.before_copy]


def _plain_event(event: Event) -> str:
    return f"{clock(event.elapsed):>9}  {event.text}"


def _json_line(standings: Standings) -> str:
    best = standings.population.best
    known = _fitnesses(standings)
    body = {
        "kind": "progress",
        "elapsed": round(standings.elapsed, 3),
        "left": standings.left,
        "unit": standings.header.unit,
        "env_steps": standings.step,
        "frames": standings.step * standings.header.frames_per_step,
        "steps_budget": standings.header.budget,
        "env_steps_per_s": standings.rate,
        "generation": standings.generation,
        "best": best and {"member": best.id, "fitness": best.fitness},
        "fitness_median": statistics.median(known) if known else None,
        "before_copy": sum(row.before_copy for row in standings.rows()),
    }
    if agents := standings.population.agents:
        body["agents"] = agents
    return to_json(body)


def _json_event(event: Event) -> str:
    return to_json({"kind": event.kind, "elapsed": round(event.elapsed, 3), **event.facts})


def _best(best: Mapping[str, Any], measure: str) -> str:
    """`m03 (m03/000014): mean return 18.4, 95 % interval 17.9 to 19.0, 30 fresh episodes`."""
    evaluation = best.get("evaluation") or {}
    text = f"{best['member']} ({best.get('snapshot', '?')})"
    if "return_mean" in evaluation:
        text += f": {measure} {score(evaluation['return_mean'])}"
    if evaluation.get("ci95"):
        low, high = evaluation["ci95"]
        text += f", 95 % interval {score(low)} to {score(high)}"
    if "episodes" in evaluation:
        text += f", {evaluation['episodes']} fresh episodes"
    if cut := truncation(evaluation):
        text += f"; {cut}"
    return text


def _at_bound(name: str, number: object, end: str) -> str:
    """A warning that the best lineage might have gone further."""
    return f"{name} ends at {value(number)}, the {end}imum that its bounds allow: they may be too narrow"


def _changes(points: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, str]:
    """Per hyperparameter its values over the steps trained, middle ones left out where there are many."""
    found = {}
    for name in points[0][1] if points else ():
        moves = [(step, values[name]) for step, values in points if name in values]
        moves = [m for i, m in enumerate(moves) if i == 0 or moves[i - 1][1] != m[1]]
        texts = [value(x) if step == 0 else f"{value(x)} from {count(step)}" for step, x in moves]
        if len(texts) > 4:
            texts = [*texts[:2], f"({len(texts) - 3} more)", texts[-1]]
        found[name] = " -> ".join(texts)
    return found


def labelled(lines: Mapping[str, str]) -> str:
    """A line for each, with its name in front; lines that a text itself has are moved below each other."""
    below = "\n" + 11 * " "
    return "\n".join(f"{name.strip():<11}{text}".replace("\n", below) for name, text in lines.items())
