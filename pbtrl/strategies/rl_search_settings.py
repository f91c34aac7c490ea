"""Settings of the hyperparameter search by model-based reinforcement learning."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from pbtrl.core.search_space import SearchSpace
from pbtrl.core.values import Whole
from pbtrl.errors import ConfigProblem
from pbtrl.strategies.rl_rules import AgentRules, ModelRules
from pbtrl.strategies.settings import StrategyContext
from pbtrl.strategies.trial_settings import TrialCount, TrialSettings, trial_arguments

if TYPE_CHECKING:
    from pbtrl.strategies import Strategy


@dataclass(frozen=True, kw_only=True)
class RLSearchSettings(TrialSettings):
    """Settings of the search by model-based reinforcement learning.

    Attributes:
        trials: number of trials.
        batch_size: number of trials per update of the agent.
        sequential: whether a hyperparameter depends on those that were drawn before it; otherwise the agent draws all
            at once.
        order: order in which the agent decides hyperparameters: drawn once per run (`random`), or that of the `config`.
        agent: settings of the agent.
        model: settings of the predictive model.
    """

    name: Literal["rl_search"] = "rl_search"
    trials: TrialCount = 160
    batch_size: Annotated[Whole, Field(ge=2)] = 16
    sequential: bool = True
    order: Literal["random", "config"] = "random"
    agent: AgentRules = field(default_factory=AgentRules)
    model: ModelRules = field(default_factory=ModelRules)

    @override
    def count_trials(self, config: Any) -> int:
        return self.trials

    @override
    def check(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between the trials, the batches, the population and the search space."""
        size, budget = config.population.size, config.budget
        if config.population.mix is not None:
            yield ConfigProblem("rl_search searches for one agent: remove the mix", ("population", "mix"))
        elif not config.hparams:
            yield ConfigProblem("rl_search needs at least one hyperparameter to search", ("hparams",))
        if self.trials < self.batch_size:
            text = f"{self.trials} trials are fewer than a batch of {self.batch_size}: the agent would never learn"
            yield ConfigProblem(text, ("strategy", "trials"), ("strategy", "batch_size"))
        if size > self.batch_size:
            text = f"{size} members are more than a batch of {self.batch_size}, which is all that trains at once"
            yield ConfigProblem(text, ("population", "size"), ("strategy", "batch_size"))
        steps = budget.env_steps_per_member
        if budget.total_steps is not None and budget.total_steps <= steps * self.batch_size:
            text = f"{budget.total_steps:,} is no more than a batch, {self.batch_size} trials of {steps:,}: the agent "
            yield ConfigProblem(text + "would never learn", ("budget", "total_steps"), ("strategy", "batch_size"))

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.rl_search import RLSearch

        assert isinstance(context.space, SearchSpace)
        return RLSearch(
            space=context.space,
            trials=self.trials,
            batch_size=self.batch_size,
            sequential=self.sequential,
            shuffled=self.order == "random",
            agent=self.agent,
            model=self.model,
            **trial_arguments(context),
        )
