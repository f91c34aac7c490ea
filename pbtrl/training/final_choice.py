"""Final choice of the best member.

The highest training fitness is a maximum over noisy windows and therefore biased upwards. So the best candidates are
evaluated on selection seeds, and the chosen one again on other seeds. Only that last score is reported.
"""

from __future__ import annotations

import json
import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

from pbtrl.config.schema import Config
from pbtrl.core.population import Population
from pbtrl.core.seeding import evaluation_seed
from pbtrl.errors import SnapshotError
from pbtrl.storage.best_member import snapshot_digest
from pbtrl.storage.json_files import SCHEMA
from pbtrl.storage.parsing import parse_best
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.stored_config import load_stored_config
from pbtrl.system.files import write_atomically
from pbtrl.system.strict_json import to_json
from pbtrl.training import scoring
from pbtrl.training.scoring import is_scored

SELECTION_KEYS = ("member", "return_mean", "ci95", "episodes", "truncated", "unmeasured")  # of candidates, in best.json


def choose(config: Config, run: RunDirectory, population: Population, seconds: float | None = None) -> dict[str, Any]:
    """Choose the best member: candidates by training fitness, the choice on selection seeds, the score on others.

    The choice takes at most half of `seconds`, the score the rest; both may exceed it slightly.

    Returns:
        The content of best.json. The file is not written if the score is not finite. Empty if there is no snapshot to
        choose from.
    """
    names, started = candidates(config, run, population), time.monotonic()
    if not names:
        return {}
    final = config.final
    half = None if seconds is None else seconds / 2
    selection = scoring.evaluate(
        config, run, names, episodes=final.selection_episodes, seed=evaluation_seed(config.seed, "selection"),
        seconds=half, held_out=False,
    )  # fmt: skip
    scores = [s["return_mean"] if is_scored(s) else -math.inf for s in selection]
    name = names[max(range(len(scores)), key=lambda i: (scores[i], -i))]
    left = None if seconds is None else seconds - (time.monotonic() - started)
    (score,) = scoring.evaluate(
        config, run, [name], episodes=final.episodes, seed=evaluation_seed(config.seed, "final"), seconds=left
    )
    chosen = population.members[score["member"]]
    best = {
        "schema": SCHEMA,
        "member": chosen.id,
        "snapshot": name,
        "sha256": snapshot_digest(run, name),
        "hyperparameters": chosen.snapshot_hparams,
        "training_fitness": chosen.fitness,
        "evaluation": score,
        "selection": [{key: s[key] for key in SELECTION_KEYS} for s in selection],
    }
    if is_scored(score):
        text = to_json(best, indent=2)
        parse_best(json.loads(text))  # what its readers refuse is not written
        write_atomically(run.best_file, text)
    return best


def choose_of(run: str, seconds: float | None) -> dict[str, Any]:
    """Choose the best member of the run in a directory; see `choose`."""
    directory = RunDirectory(Path(run))
    _, _, population = directory.load()
    return choose(load_stored_config(directory, trusted=True), directory, population, seconds)


def candidates(config: Config, run: RunDirectory, population: Population) -> list[str]:
    """Return the snapshots of the fittest candidates, or of all candidates if none has a fitness.

    Missing and damaged snapshots are left out.

    Raises:
        SnapshotError: all of them are missing or damaged.
    """
    store, ranked = run.snapshots, population.ranking()
    names = [m.snapshot for m in ranked or population.candidates if m.snapshot]
    intact = (name for name in names if store.is_at(name, population.snapshot_origin[name].stop))
    chosen = list(islice(intact, config.final.candidates if ranked else None))
    if names and not chosen:
        raise SnapshotError(f"{run}: no intact snapshot among the candidates for the best: {', '.join(names)}")
    return chosen
