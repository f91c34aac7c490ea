"""Run directories: made, found, checked, listed, and their state.

    runs/pong/  run.json config.yaml config.resolved.yaml journal.jsonl LOCK best.json
                members/<id>/{metrics.jsonl,log.txt,snapshots/}  tb/  eval/

The journal says what happened; LOCK (held for the controller's life, lock.py) says whether somebody is at it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pbtrl import card, schema
from pbtrl.core.population import Member, Population
from pbtrl.errors import DamagedError as DamagedError
from pbtrl.errors import RunError as RunError
from pbtrl.header import Header, split
from pbtrl.journal import Line, read
from pbtrl.lock import Lock, holder
from pbtrl.snapshots import Store
from pbtrl.system.files import sync_directory

if TYPE_CHECKING:
    from pbtrl.config.schema import Config

IfExists = Literal["error", "resume", "overwrite", "suffix"]
State = Literal["running", "finished", "stopped", "crashed", "stale"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STALE_AFTER = 600.0  # seconds without a line, while somebody holds the lock
_FILES = frozenset(
    {"run.json", "config.yaml", "config.resolved.yaml", "LOCK", "members", "tb", "best.json", "eval", "log.txt"}
)


def create(root: Path, name: str, if_exists: IfExists = "error") -> Path:
    """Make the directory of a new run, or return that of the old one where `if_exists` is `resume`.

    A directory that holds no journal yet (its run never began) counts as new.

    Raises:
        RunError: the name is taken or no name, the directory not writable, or the run to overwrite is alive.
    """
    _check_name(name)
    if if_exists == "suffix":
        names = (name if n == 1 else f"{name[:58]}-{n}" for n in count(1))
        return next(run for n in names if _made(run := root / n))
    run = root / name
    if if_exists == "overwrite" and run.exists():
        _remove(run)
    if claimed := _claim(run):
        return claimed
    if if_exists == "resume" and is_run(run):
        if not os.access(run, os.W_OK):
            raise RunError(f"cannot write to {run}: permission denied")
        return run
    raise _taken(run)


def check_free(root: Path, name: str, if_exists: IfExists) -> None:
    """Raise what `create` would raise, as far as that can be known without making anything."""
    _check_name(name)
    run = root / name
    if if_exists == "error" and os.path.lexists(run) and not _is_blank(run):
        raise _taken(run)


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise RunError(f"{name[:80]!r} is no name for a run: letters, digits, '.', '_', '-', at most 64, no '/'")


def check_imports(run: Path, config: Config, *, allowed: bool) -> None:
    """Nothing is imported because a run directory says so: it may be a stranger's.

    Raises:
        RunError: its config names a module, and the user did not allow it.
    """
    if config.imports and not allowed:
        raise RunError(f"{run} asks to import {config.imports!r}, which runs its code: allow it with --trust-imports")


def check_links(run: Path) -> None:
    """Whoever writes into a run directory, or reads weights from it, must not end up elsewhere.

    Raises:
        RunError: there is a link, a pipe or a device in it, which pbtrl never makes.
    """
    for folder, folders, files in os.walk(run):
        for path in (Path(folder, name) for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # somebody is at the run
                kind = path.lstat().st_mode
                if stat.S_ISLNK(kind):
                    raise RunError(f"{path} is a link, and could lead anywhere: put there what it leads to")
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    raise RunError(f"{path} is neither file nor folder: pbtrl makes nothing else")


def has_begun(run: Path) -> bool:
    """Whether there is a whole first line in its journal."""
    try:
        with schema.opened(run / "journal.jsonl") as file:
            return file.readline().endswith(b"\n")
    except (OSError, DamagedError):
        return False


def config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The resolved config that a run is of.

    Raises:
        DamagedError: it is missing.
        ConfigError: it, or an override, is none.
    """
    from pbtrl.config.load import load

    path = run / "config.resolved.yaml"
    if not path.is_file():
        raise DamagedError(f"{path} is missing, and with it what the run is of: put it back, or train anew")
    return load(path, overrides)


def reference(run: Path) -> str:
    """What to call a run in a shell's command: its name, with `--runs` where it lies elsewhere; its path if renamed."""
    return f"{run.name}{root_option(run.parent)}" if NAME.fullmatch(run.name) else _word(run)


def root_option(root: Path) -> str:
    """What a shell's command needs besides names of runs that lie in `root`, with a space before it."""
    return "" if root.resolve() == Path("runs").resolve() else f" --runs {_word(root)}"


def _word(path: Path) -> str:
    """A path, quoted for a shell, that is taken neither for an option nor for a home directory."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) else text)


def trusting(run: Path, known: Config | None = None) -> str:
    """The same for commands that run its env, which may have to be allowed; its config is read if it is not known."""
    from pbtrl.errors import ConfigError

    try:
        imports = (known or config(run)).imports
    except (DamagedError, ConfigError):
        imports = None
    return reference(run) + (" --trust-imports" if imports else "")


def default_name(label: str) -> str:
    """A name for a run that was given none: what it trains, and the time; others may think of the same one."""
    return f"{label[:40]}-{time.strftime('%Y%m%d-%H%M%S')}"


def find(text: str, root: Path) -> Path:
    """The run that `text` means: `last` (begun or resumed last), a name, a unique prefix of one, or a path.

    Raises:
        RunError: there is none, or there are several; the message lists them.
    """
    runs = {run.name: run for run in _runs(root)}
    if text == "last" and "last" not in runs:
        if not runs:
            raise RunError(f"there are no runs in {root}")
        return max(runs.values(), key=_begun)
    if text in runs:
        return runs[text]
    if "\0" not in text and is_run(path := Path(os.path.expanduser(text))):  # `.`, `..` and links have other names
        return path.resolve() if path.name in ("", "..") or path.is_symlink() else path
    matches = sorted(name for name in runs if name.startswith(text) and text)
    if len(matches) == 1:
        return runs[matches[0]]
    if matches:
        raise RunError(f"{text[:80]!r} may mean {_several(matches)}")
    raise RunError(f"no run {text[:80]!r} in {root}" + (f": there are {_several(sorted(runs))}" if runs else ""))


def is_run(path: Path) -> bool:
    """Whether this is a run directory."""
    return any(os.path.isfile(path / name) for name in ("journal.jsonl", "run.json"))  # raises nothing


def leftovers(run: Path) -> list[Path]:
    """What killed writers left behind in a run: nothing that counts."""
    return [*sorted(run.glob(".tmp-*")), *Store(run / "members").leftovers()]


def sweep(run: Path) -> list[Path]:
    """Delete the leftovers, and name them; only for who holds the lock."""
    found = leftovers(run)
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def heartbeat(run: Path) -> float:
    """Seconds since the run last wrote something: a journal line, a metrics line, or its lock."""
    written = [run / "journal.jsonl", run / "LOCK", *run.glob("members/*/metrics.jsonl")]
    return max(0.0, time.time() - max((_modified(p) for p in written), default=0.0))


def state(run: Path) -> State:
    """Where a run stands, from its lock, the journal's last line and its heartbeat.

    `running`: somebody holds the lock. `stale`: so it is, but nothing was written for ten minutes.
    `finished`, `stopped`: nobody holds it and the journal ends so. `crashed`: nobody, and it just ends.
    """
    if holder(run) is not None:
        return "stale" if heartbeat(run) > STALE_AFTER else "running"
    match _last_kind(run / "journal.jsonl"):
        case "finish":
            return "finished"
        case "stop":
            return "stopped"
        case _:
            return "crashed"


def folded(run: Path) -> tuple[Header, list[Line], Population]:
    """A run's journal, and the population that follows from it.

    Raises:
        DamagedError: the journal is missing, or does not fold.
    """
    try:
        with sound(run):
            header, lines = split(read(run / "journal.jsonl"))
            return header, lines, header.population().replay(lines)
    except FileNotFoundError:
        raise DamagedError(f"{run} has no journal: the run never began") from None


@contextlib.contextmanager
def sound(run: Path) -> Iterator[None]:
    """Whoever makes something of a run's journal finds in it what pbtrl wrote; else DamagedError."""
    try:
        yield
    except RunError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DamagedError(f"{run / 'journal.jsonl'} does not fold: {type(error).__name__}: {error}") from error


def status(run: Path) -> dict[str, Any]:
    """Where a run and its members stand, as JSON; steps are in `unit`, ages in seconds, sizes in bytes.

    Raises:
        DamagedError: the journal is missing or damaged.
    """
    header, _, population = folded(run)
    return standing(run, header, population)


def standing(run: Path, header: Header, population: Population) -> dict[str, Any]:
    """`status`, for who has folded the journal."""
    best = population.best
    return {
        "name": run.name,
        "path": str(run),
        "state": state(run),
        "unit": header.unit,
        "env_steps": population.step,
        "frames": population.step * header.frames_per_step,
        "steps_budget": header.budget,
        "generation": max((m.generation for m in population.members.values()), default=-1),
        "best": best and {"member": best.id, "fitness": best.fitness},
        "heartbeat_age": heartbeat(run),
        "bytes": _bytes(run),
        "members": [_member(m, header) for m in population.members.values()],
    }


def listing(root: Path) -> list[dict[str, Any]]:
    """The status of every run, newest last; one that cannot be read has an `error` and little else."""
    found = []
    for run in sorted(_runs(root), key=_begun):
        try:
            with sound(run):
                found.append(status(run))
        except RunError as error:
            found.append({"name": run.name, "path": str(run), "state": state(run), "error": str(error)})
    return found


def _member(member: Member, header: Header) -> dict[str, Any]:
    return {
        "id": member.id,
        "env_steps": member.step,
        "frames": member.step * header.frames_per_step,
        "fitness": member.fitness,
        "fitness_before_copy": member.placeholder,
        "generation": member.generation,
        "skipped_updates": member.skipped_updates,
        "parent": member.open.parent if member.open else member.parent,
        "hyperparameters": member.hyperparameters,
        "at_bound": header.at_bound(member.hyperparameters),
    }


def _taken(run: Path) -> RunError:
    if not is_run(run):
        return RunError(f"{run} exists and is no run: choose another --name or --runs, or --suffix")
    ways = f"go on with `pbtrl resume {trusting(run)}`, or start anew with --suffix or --overwrite"
    return RunError(f"{run} exists ({state(run)}): {ways}")


def _claim(run: Path) -> Path | None:
    """The directory, made, or there already and untouched; None if a run is in it."""
    return run if _made(run) or (_is_blank(run) and os.access(run, os.W_OK)) else None


def _made(run: Path) -> bool:
    """Make the directory; False if it is there already, as for all but one of several who begin together."""
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        run.mkdir()
        sync_directory(run.parent)
    except FileExistsError:
        if run.parent.is_dir():
            return False
        raise RunError(f"cannot write to {run.parent}: not a directory") from None
    except OSError as error:
        raise RunError(f"cannot write to {run.parent}: {error.strerror or error}") from error
    return True


def _is_blank(run: Path) -> bool:
    """Made for a run that never began: no journal line, nobody at it, and nothing in it that is not ours."""
    if not run.is_dir() or holder(run) is not None:
        return False
    names = {p.name.removeprefix(".tmp-") for p in run.iterdir()}
    trained = any(run.glob("members/*/snapshots/*"))  # and the journal was lost
    return not (has_begun(run) or trained) and names <= _FILES | {"journal.jsonl"}


def _remove(run: Path) -> None:
    """Out of the way first, so that nobody begins in what is being deleted."""
    if run.is_symlink() or not (is_run(run) or _is_blank(run)):
        raise RunError(f"{run} is no run directory: it is left as it is")
    gone = run.with_name(f".gone-{run.name}")
    try:
        shutil.rmtree(gone, ignore_errors=True)  # of somebody who was killed here
        with Lock(run):
            run.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise RunError(f"cannot remove {run}: {error.strerror or error}") from error


def _runs(root: Path) -> Iterator[Path]:
    """Run directories right below the root; links that lead out of it are none, nor is what is being removed."""
    if not os.path.isdir(root):
        return
    try:
        found = list(root.iterdir())
    except OSError as error:
        raise RunError(f"cannot read {root}: {error.strerror or error}") from error
    for path in found:
        if not path.name.startswith(".") and is_run(path) and path.resolve().is_relative_to(root.resolve()):
            yield path


def _begun(run: Path) -> tuple[float, str]:
    """When the run's latest sitting began (Unix seconds)."""
    try:
        return float(card.read(run)["started"]), run.name
    except (RunError, KeyError, TypeError, ValueError, OverflowError):
        return _modified(run / "journal.jsonl"), run.name


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _last_kind(journal: Path) -> str | None:
    """Kind of the last whole line, read from the file's end."""
    try:
        with schema.opened(journal) as file:
            file.seek(max(0, journal.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
        kind = json.loads(lines[-1])["kind"]
    except (OSError, ValueError, IndexError, KeyError, TypeError, RecursionError):
        return None
    return str(kind)


def _bytes(run: Path) -> int:
    found = (Path(folder, name) for folder, _, names in os.walk(run) for name in names)
    return sum(_length(path) for path in found)


def _length(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # retention was faster
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
