"""Scores of snapshots: fresh episodes, their mean and its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pbtrl.build.evaluators import make_evaluator
from pbtrl.build.trainables import fitness_name
from pbtrl.config.schema import Config
from pbtrl.core.dimensions import AGENT
from pbtrl.core.scores import EPISODES
from pbtrl.errors import RunError, SnapshotError
from pbtrl.reporting.formatting import format_fitness
from pbtrl.storage.best_member import save_evaluation, snapshots_to_evaluate
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.system.files import reason

if TYPE_CHECKING:
    from pbtrl.rl.video import Camera


def evaluate_member(
    config: Config, run: RunDirectory, member: str, *, episodes: int | None = None, deterministic: bool = False,
    **how: Any,
) -> tuple[list[dict[str, Any]], str]:  # fmt: skip
    """Evaluate the newest snapshots of `member` (an id, `best` or `all`) and save the results in the run's `eval/`.

    Args:
        config, run: the run.
        member: as in `snapshots_to_evaluate`.
        episodes: episodes per member; by default EPISODES.
        deterministic: take the most likely actions.
        how: further arguments of `evaluate`.

    Returns:
        The results, and a warning if they could not be saved, else an empty text.

    Raises:
        RunError: a trainable was asked for episodes or most likely actions.
    """
    if config.env is None and (episodes is not None or deterministic):
        raise RunError(f"{run} trains {config.task}, which has no episodes and no actions: leave out such options")
    how |= {"episodes": EPISODES if episodes is None else episodes, "deterministic": deterministic}
    snapshots = snapshots_to_evaluate(run, member)
    try:
        results = evaluate(config, run, snapshots, **how)
    except SnapshotError:
        if (newest := snapshots_to_evaluate(run, member)) == snapshots:
            raise
        results = evaluate(config, run, newest, **how)  # the run is training and has deleted the first ones
    try:
        save_evaluation(run, results)
    except OSError as error:
        return results, f"results not saved in {run.evaluations}: {reason(error)}"
    return results, ""


def evaluate(
    config: Config, run: RunDirectory, snapshots: Sequence[str], *, episodes: int, seed: int,
    deterministic: bool = False, seconds: float | None = None, held_out: bool = True, video: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Play fresh episodes with each snapshot. Returns one JSON object per snapshot.

    Keys: member, agent (its name, or the entry of a mix), metric (`return`, or the name of a trainable's fitness),
    held_out (whether a trainable was scored on data that nothing else uses), snapshot, env_steps (the member's clock),
    episodes, unmeasured (episodes without the number of `fitness.metric`, which do not count), return_mean, return_std,
    ci95 (pair; this and return_std are null for one episode), return_min, return_max, length_mean, truncated (episodes
    that were cut at max_steps or for lack of time; truncation by the env does not count), max_steps (env steps; null
    for no limit), timed_out, deterministic, protocol, seed, seeds. Returns are raw; statistics that are not finite are
    null.

    With `video`, the first episode of as many envs is recorded, and the result has `video`: its file in the run's
    `eval/`, and the episodes' returns and lengths. Such envs run in gymnasium, because envpool cannot render.

    A trainable that has a method `test` is scored by it, on data that nothing else uses; without `held_out` by
    `evaluate`, as in training. After `seconds`, unfinished episodes are cut and no more begin.

    Raises:
        SnapshotError: a snapshot is missing, damaged, or does not belong to an agent of the config.
        RunError: a video of several members, or of more episodes than are played in envs of their own.
        RenderError: a video of an env that cannot render.
    """
    camera = _camera(config, run, snapshots, episodes, video) if video else None
    store = run.snapshots
    loaded = [store.load(name) for name in snapshots]
    rows = [row for row, _ in loaded]
    try:
        steps = [int(state["report"]["step"]) for _, state in loaded]
        hyperparameters = [dict(state["report"]["hyperparameters"]) for _, state in loaded]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SnapshotError(f"{run}: a snapshot's state.json holds no report") from None
    agents = [h.get(AGENT) for h in hyperparameters]
    play = make_evaluator(config)
    metric = fitness_name(config)
    played = play(
        rows, hyperparameters, episodes=episodes, seed=seed, deterministic=deterministic, seconds=seconds,
        held_out=held_out, camera=camera,
    )  # fmt: skip
    return [
        {
            "member": name.split("/")[0],
            "agent": agent or (config.agent.name if config.agent else None),
            "metric": "return" if metric == "fitness" and config.env else metric,
            "held_out": one.held_out,
            "snapshot": name,
            "env_steps": step,
            "episodes": len(one.lengths),
            "unmeasured": one.unmeasured,
            **return_statistics(one.returns),
            "length_mean": float(np.mean(one.lengths)),
            "truncated": one.truncated,
            "max_steps": one.max_steps,
            "timed_out": one.timed_out,
            "deterministic": deterministic,
            "protocol": config.env.protocol if config.env and config.env.is_atari else None,
            "seed": seed,
            "seeds": one.seeds,
            **({"video": camera.save(run, name, format_fitness)} if camera else {}),
        }
        for name, agent, step, one in zip(snapshots, agents, steps, played, strict=True)
    ]


def _camera(config: Config, run: RunDirectory, snapshots: Sequence[str], episodes: int, video: int) -> Camera:
    """Make the camera for a video of some episodes, if these can be recorded."""
    from pbtrl.rl.evaluation import ENVS
    from pbtrl.rl.video import Camera

    if config.env is None:
        raise RunError(f"{run} trains {config.task}, which has no episodes to show")
    if len(snapshots) != 1:
        raise RunError("a video is of one member: best, or an id such as m03")
    if video > (most := min(episodes, ENVS)):
        raise RunError(f"a video of {video} episodes needs as many, each in an env of its own, not {most}")
    return Camera(video)


def is_scored(result: Mapping[str, Any]) -> bool:
    """Return whether the mean of an evaluation is a finite number."""
    return result["return_mean"] is not None and math.isfinite(result["return_mean"])


def unscored(config: Config, results: Sequence[Mapping[str, Any]]) -> str | None:
    """Format a line that names the snapshots without a finite score, and why; None if all scores are finite."""
    missing = [r for r in results if not is_scored(r)]
    absent = ", ".join(r["snapshot"] for r in missing if r["unmeasured"] == r["episodes"])
    broken = ", ".join(r["snapshot"] for r in missing if r["unmeasured"] < r["episodes"])
    metric, task = results[0]["metric"], _task(config)
    reasons = [f"no episode of {absent} in {task} has the number {metric} (fitness.metric)"] if absent else []
    reasons += [f"the mean {metric} of {broken} in {task} is not finite"] if broken else []
    return f"no score: {'; '.join(reasons)}" if reasons else None


def return_statistics(returns: Sequence[float]) -> dict[str, Any]:
    """Compute mean, spread and Student's 95 % interval of the mean; None for values that are not finite or absent."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    n = len(returns)
    if not n:
        return dict.fromkeys(("return_mean", "return_std", "ci95", "return_min", "return_max"))
    with np.errstate(all="ignore"):
        mean, std = float(np.mean(returns)), float(np.std(returns, ddof=1)) if n > 1 else math.nan
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return {
        "return_mean": _finite(mean),
        "return_std": _finite(std),
        "ci95": [mean - half, mean + half] if math.isfinite(mean) and math.isfinite(half) else None,
        "return_min": _finite(float(np.min(returns))),
        "return_max": _finite(float(np.max(returns))),
    }


def _task(config: Config) -> str:
    return f"env.id={config.env.id}" if config.env else f"trainable.name={config.trainable and config.trainable.name}"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
