"""Model card of a bundle for the Hugging Face hub: README.md with its metadata, and the pictures that it shows.

Names and settings of a run may come from an untrusted source. All of its text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pbtrl.build.policies import LoadedPolicy
from pbtrl.config.load import to_yaml
from pbtrl.config.schema import Config
from pbtrl.config.yaml_source import dump_yaml
from pbtrl.errors import printable
from pbtrl.export.bundle import usage
from pbtrl.export.self_check import OBSERVATIONS
from pbtrl.reporting import plots
from pbtrl.reporting.formatting import format_count, format_fitness, format_value
from pbtrl.reporting.schedule import discover
from pbtrl.reporting.tables import episode_remarks
from pbtrl.storage.best_member import read_best
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.video_files import newest_video

MAX_SCHEDULE_ROWS = 30  # of the schedule


def card_files(run: RunDirectory, config: Config, loaded: LoadedPolicy, info: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files that the hub wants beside a bundle; `info` is the content of export.json."""
    assert config.env
    header, records, population = run.load()
    best = read_best(run)
    lineage = plots.draw(plots.RunData(header, records, population, loaded.snapshot), "lineage", "png")
    files = {"lineage.png": lineage}
    if video := newest_video(run, loaded.snapshot):
        files[f"replay{video.suffix}"] = video.read_bytes()
    parts = [
        f"# {_text(info['agent'])} in {_text(info['env'])}",
        f"Member {info['member']} of a population of {len(population.members)}, trained by pbtrl with the strategy "
        f"{_text(config.strategy.name)}.",
        _score(info),
        *(f"![A recorded episode](replay{video.suffix})" for video in [video] if video and video.suffix == ".gif"),
        "## Usage",
        f"```python\nfrom policy import Policy\n\n{usage(info['policy'])}```",
        "The actions are those that `env.step` takes, the most likely ones by default; "
        "`predict(..., deterministic=False)` draws samples. `policy.parameters` are then the parameters of their "
        "distribution: logits, or means and logarithms of standard deviations before clipping or squashing. "
        f"The largest difference from pbtrl's own policy on {OBSERVATIONS} observations was "
        f"{info['largest_difference']:.1e}.",
        "## Training",
        f"- env {_text(config.env.described)}\n"
        f"- {format_count(loaded.report['step'])} {header.steps} of this member, {format_count(population.step)} of "
        f"the population; {population.copies} copies between members\n"
        f"- seed {header.seed}; deterministic: {_text(header.deterministic)}\n"
        f"- pbtrl {info['pbtrl']}; `config.yaml` is the resolved config: `pbtrl train config.yaml`",
        "The hyperparameters that led to these weights:",
        _schedule(run, "best" if best and loaded.snapshot == best.snapshot else info["member"]),
        "Descent of the weights; black is the lineage of this member:",
        "![Lineage](lineage.png)",
        f"<details><summary>config.yaml</summary>\n\n<pre>{_text(to_yaml(config))}</pre>\n\n</details>",
    ]
    card = f"---\n{dump_yaml(_metadata(info))}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    return {**files, "README.md": card.encode()}


def _metadata(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the header that the hub reads."""
    score = info["score"] or {}
    tags = ["deep-reinforcement-learning", "reinforcement-learning", "population-based-training"]
    result: dict[str, Any] = {
        "library_name": "pbtrl",
        "pipeline_tag": "reinforcement-learning",
        "tags": [*tags, info["agent"], info["env"]],
    }
    if score.get("return_mean") is not None:
        task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
        spread = "" if score["return_std"] is None else f" +/- {score['return_std']:.2f}"
        value = f"{score['return_mean']:.2f}{spread}"
        measure = "mean_reward" if _is_return(score) else score["metric"]
        metric = {"type": measure, "value": value, "name": measure, "verified": False}
        dataset = {"name": info["env"], "type": info["env"]}
        result["model-index"] = [
            {"name": info["agent"], "results": [{"task": task, "dataset": dataset, "metrics": [metric]}]}
        ]
    return result


def _score(info: Mapping[str, Any]) -> str:
    score = info["score"]
    if not score or score.get("return_mean") is None:
        return f"It was not scored: `pbtrl eval {_text(info['run'])} --member {info['member']}` does it."
    measure = "Mean return" if _is_return(score) else f"Mean {_text(score['metric'])}"
    text = f"**{measure} {format_fitness(score['return_mean'])}**"
    if score.get("ci95"):
        low, high = map(format_fitness, score["ci95"])
        text += f", 95 % interval {low} to {high}"
    kind = "most likely actions" if score.get("deterministic") else "sampled actions"
    protocol = f", protocol {_text(score['protocol'])}" if score.get("protocol") else ""
    raw = " and raw rewards" if _is_return(score) else ""
    remarks = f"; {_text(rest)}" if (rest := episode_remarks(score)) else ""
    return f"{text}, over {score['episodes']} fresh episodes with {kind}{raw}{protocol}{remarks}."


def _is_return(score: Mapping[str, Any]) -> bool:
    """Return whether a score is the mean return, and not that of a `fitness.metric`."""
    return bool(score.get("metric", "return") == "return")


def _schedule(run: RunDirectory, member: str) -> str:
    """Format the discovered schedule as a Markdown table; of many rows the middle ones are left out."""
    discovered = discover(run, member)
    rows: list[Sequence[str]] = [
        [f"{step:,}", *(_text(format_value(value)) for value in values.values())] for step, values in discovered.points
    ]
    if len(rows) > MAX_SCHEDULE_ROWS:
        rows = [*rows[: MAX_SCHEDULE_ROWS // 2], ["..."] * len(rows[0]), *rows[-MAX_SCHEDULE_ROWS // 2 :]]
    titles = [f"from ({discovered.unit})", *map(_text, discovered.points[0][1])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *rows))


def _text(text: object) -> str:
    return html.escape(printable(str(text)).replace("|", "\\|"), quote=False)
