"""Re-derivation of a run's decisions: the strategy is asked again at every decision, and must give the same answer.

So the journal holds everything that decided the run. A difference means that the journal was changed, or that another
version of the strategy, or of a library that it uses, decided then.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pbtrl.build.factory import make_strategy
from pbtrl.config.adjust import adjusted
from pbtrl.config.load import with_setting
from pbtrl.config.schema import Config
from pbtrl.core.records import Decision, RunChanged, RunResumed
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import read_header
from pbtrl.strategies import Strategy
from pbtrl.strategies.assigning import decide


@dataclass(frozen=True)
class Difference:
    """First decision that comes out differently.

    Attributes:
        line: number of the journal line.
        member: member whose assignment or retirement differs.
        recorded: the assignment in the journal, or `{"retired": true or false}`; None for no assignment.
        derived: the same of what the strategy decides now.
    """

    line: int
    member: str
    recorded: dict[str, Any] | None
    derived: dict[str, Any] | None


def rederive(run: RunDirectory, config: Config) -> dict[str, Any]:
    """Ask the strategy of a run's config again at every decision; returns the result as JSON values.

    Keys: decisions (number of decisions that came out the same), and difference (see `Difference`; null if there is
    none). A longer budget of a later session applies from its first line on, and a change by `pbtrl set` from its
    line on.
    """
    _, records, _ = run.load()
    header, _ = read_header(records[:1])
    population, horizon, decisions = header.population(), header.horizon, 0
    strategy = _strategy(config, horizon)
    for number, record in enumerate(records, 1):
        match record:
            case RunResumed() if record.horizon is not None:
                horizon = record.horizon
                strategy = _strategy(config, horizon)
            case RunChanged():
                config = adjusted(config, [record])
                strategy = _strategy(config, horizon)
            case Decision():
                free = record.free
                population.free = population.size - len(population.pending) if free is None else free
                derived = {a.member: a.to_json() for a in decide(strategy, population)}
                recorded = {a.member: a.to_json() for a in record.assignments}
                retired = {m for m in strategy.retired(population) if not population.members[m].retired}
                differences = [Difference(number, m, recorded.get(m), derived.get(m)) for m in [*recorded, *derived]]
                for m in sorted(retired | {*record.retired}):
                    differences.append(Difference(number, m, _retired(m in record.retired), _retired(m in retired)))
                if difference := next((d for d in differences if d.recorded != d.derived), None):
                    return {"decisions": decisions, "difference": asdict(difference)}
                decisions += 1
        population.record(record)
    return {"decisions": decisions, "difference": None}


def _retired(retired: bool) -> dict[str, Any]:
    return {"retired": retired}


def _strategy(config: Config, horizon: int) -> Strategy:
    """Make the strategy as of a session whose members had this budget."""
    if config.steps_per_member != horizon:
        config = with_setting(config, "budget.env_steps_per_member", horizon)
    return make_strategy(config)


def text(result: dict[str, Any]) -> str:
    """Format the result of `rederive` in one or more lines."""
    difference = result["difference"]
    if difference is None:
        return f"{result['decisions']} decisions derived again from the journal, all the same"
    lines = [f"journal line {difference['line']}: the decision about {difference['member']} comes out differently"]
    for name in ("recorded", "derived"):
        lines.append(f"  {name}: {_words(difference[name])}")
    return "\n".join(lines)


def _words(decided: dict[str, Any] | None) -> str:
    if decided is None:
        return "nothing"
    if "retired" in decided:
        return "it retires" if decided["retired"] else "it goes on"
    return f"{decided['id']} from {decided['parent']} to {decided['stop']:,}, {decided['hyperparameters']}"
