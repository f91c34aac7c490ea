"""Settings of the hyperparameter search by model-based reinforcement learning."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pbtrl.core.dimensions import MEMBERS, Real, Whole
from pbtrl.core.search_space import SearchSpace
from pbtrl.errors import ConfigProblem
from pbtrl.strategies.rules import Count, Probability, SettingsSection
from pbtrl.strategies.settings import StrategyContext, StrategySettings

if TYPE_CHECKING:
    from pbtrl.strategies import Strategy

Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class AgentRules(SettingsSection):
    """Settings of the agent's training by PPO.

    Attributes:
        learning_rate: learning rate of Adam.
        epochs: updates per batch of trials.
        clip: limit of the change of a step's probability ratio.
        target_kl: change of the policy in one batch after which no further epoch begins, KL in nats per
            hyperparameter.
        max_grad_norm: limit of the gradient's norm.
        min_sd: least standard deviation of a hyperparameter, on a scale of -1 to 1.
        entropy_cost: weight of the entropy bonus in the first batch.
        entropy_decay: factor of this weight from one batch of trials to the next.
    """

    learning_rate: Positive = 0.007
    epochs: Count = 4
    clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    target_kl: Positive = 0.03
    max_grad_norm: Positive = 0.5
    min_sd: Positive = 0.02
    entropy_cost: NotNegative = 0.01
    entropy_decay: Probability = 0.97


@dataclass(frozen=True, kw_only=True)
class ModelRules(SettingsSection):
    """Settings of the predictive model, which scores proposals between two batches of trials.

    Attributes:
        method: `mlp` (an ensemble of small networks), or `none`.
        warmup: batches of trials before its first use.
        horizon: `dynamic` ends a model phase once the policy has moved by `delta`, `fixed` after `max_batches`.
        delta: distance of the policy from that at the start of the phase, KL in nats per hyperparameter.
        max_batches: most batches of predicted trials in a phase.
    """

    method: Literal["mlp", "none"] = "mlp"
    warmup: Count = 3
    horizon: Literal["dynamic", "fixed"] = "dynamic"
    delta: NotNegative = 0.05
    max_batches: Count = 10


@dataclass(frozen=True, kw_only=True)
class RLSearchSettings(StrategySettings):
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
    trials: Count = 160
    batch_size: Annotated[Whole, Field(ge=2)] = 16
    sequential: bool = True
    order: Literal["random", "config"] = "random"
    agent: AgentRules = field(default_factory=AgentRules)
    model: ModelRules = field(default_factory=ModelRules)

    @property
    def copies(self) -> bool:
        """False: trials never copy."""
        return False

    def total_steps(self, config: Any) -> int:
        """Return the env steps of all trials, or `budget.total_steps` if that is less."""
        planned: int = self.trials * config.steps_per_member
        return planned if config.budget.total_steps is None else min(planned, config.budget.total_steps)

    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between the trials, the batches, the population and the search space."""
        size, budget = config.population.size, config.budget
        if config.population.mix is not None:
            yield ConfigProblem("rl_search searches for one agent: remove the mix", ("population", "mix"))
        elif not config.hparams:
            yield ConfigProblem("rl_search needs at least one hyperparameter to search", ("hparams",))
        if self.trials > MEMBERS:
            yield ConfigProblem(f"must be <= {MEMBERS:,}, not {self.trials:,}", ("strategy", "trials"))
        if self.trials < self.batch_size:
            text = f"{self.trials} trials are fewer than a batch of {self.batch_size}: the agent would never learn"
            yield ConfigProblem(text, ("strategy", "trials"), ("strategy", "batch_size"))
        if size > self.batch_size:
            text = f"{size} members are more than a batch of {self.batch_size}, which is all that trains at once"
            yield ConfigProblem(text, ("population", "size"), ("strategy", "batch_size"))
        steps = budget.env_steps_per_member
        if steps is not None and budget.total_steps is not None and budget.total_steps <= steps * self.batch_size:
            text = f"{budget.total_steps:,} is no more than a batch, {self.batch_size} trials of {steps:,}: the agent "
            yield ConfigProblem(text + "would never learn", ("budget", "total_steps"), ("strategy", "batch_size"))

    def build(self, context: StrategyContext) -> "Strategy":
        """Make the strategy."""
        from pbtrl.strategies.rl_search import RLSearch

        assert isinstance(context.space, SearchSpace)
        return RLSearch(
            space=context.space,
            slice_steps=context.slice_steps,
            horizon=context.horizon,
            trials=self.trials,
            batch_size=self.batch_size,
            sequential=self.sequential,
            shuffled=self.order == "random",
            agent=self.agent,
            model=self.model,
            synchronous=context.synchronous,
        )
