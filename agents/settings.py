"""What can be configured about each agent: frozen dataclasses, without importing torch.

A field whose metadata says `live` is a *live hyperparameter*: its value here is the default, `hparams:` in a config
may search it, and PBT may change it at any report without a restart. Every other field is fixed for a run, or
*structural*: it decides the shape of what is learned and travels with the weights.

Adding an agent is one file with its maths and a `make` (`agents/<name>.py`), one settings class here and its entry in
`AGENTS`.
"""

import importlib
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal


def live(default: float, *, low: float | None = None, high: float | None = None, integer: bool = False) -> Any:
    """Declare a live hyperparameter: its default and the closed interval of values the agent accepts."""
    return field(default=default, metadata={"live": True, "low": low, "high": high, "integer": integer})


def fixed(default: Any, *, low: float, high: float | None = None) -> Any:
    """Declare what is fixed for a run: its default and the closed interval of values, or of a tuple's values."""
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """What the observation is turned into; shared by all agents.

    Attributes:
        network: `auto` takes `mlp` for vectors and `shallow` for images. `shallow` is IMPALA's feed-forward net for
            Atari (conv 16@8x8/4, conv 32@4x4/2, 256 units), `nature` the DQN net (32@8x8/4, 64@4x4/2, 64@3x3/1, 512
            units), `deep` IMPALA's residual net (15 convolutions, 256 units), `mlp` two separate stacks of `hidden`
            tanh units for policy and value, or a shared one below a core or fed-back inputs.
        hidden: widths of the hidden layers of `mlp`.
        core: `lstm` puts an LSTM between the features and the policy and value; it forgets where an episode begins.
        core_units: its width.
        use_last_action_reward: show the network its last action and last reward (clipped to [-1, 1]) too.
        std: a Gaussian policy's standard deviations: `free`, one learned number per action dimension, or `softplus`
            of what the network says about the state, which with `softplus_variance` is the variance.
        log_std: the logarithm of what they start from.
        actions: how a Gaussian's sample becomes a bounded action: `clip` (the log-probability is the unclipped
            sample's) or `squash` (tanh, with its change of variables).
        observations: `normalize` (running mean and variance per member, clipped at 10), `raw`, or `auto`: normalize
            vectors, leave images (which are divided by 255).
        precision: arithmetic of convolutions in the learner: `bfloat16` (autocast), `float32`, or `auto`: bfloat16
            where the hardware has it (without, it is many times slower).
    """

    network: Literal["auto", "mlp", "shallow", "nature", "deep"] = "auto"
    hidden: tuple[int, ...] = fixed((64, 64), low=1)
    core: Literal["none", "lstm"] = "none"
    core_units: int = fixed(256, low=1)
    use_last_action_reward: bool = False
    std: Literal["free", "softplus", "softplus_variance"] = "free"
    log_std: float = fixed(-0.5, low=-10.0, high=10.0)
    actions: Literal["clip", "squash"] = "clip"
    observations: Literal["auto", "normalize", "raw"] = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"


@dataclass(frozen=True, kw_only=True)
class ActorCriticSettings(NetworkSettings):
    """What the actor-critic agents share.

    Attributes:
        rewards: what the learner is given: `clip` to [-1, 1], `normalize` by the running standard deviation of the
            discounted return, `none`, or `auto`: clip for images, normalize for vectors. `asymmetric` is IMPALA's
            optimistic clip, 5 tanh(r / 5), of which losses count 0.3, as in its published code; its paper's figure is
            another, 5 tanh r for gains and 0.3 tanh r for losses: `asymmetric_figure`. Fitness is always raw.
        optimizer: `rmsprop` (TensorFlow's form, epsilon inside the root) or `adam`.
        unroll_mode: `budget`: every update learns from a block of `block_length` steps, in which `unroll_length`
            places the cuts. `exact`: the member updates every `unroll_length` steps.
        block_length: env steps per env in a block; by default the largest `unroll_length` the search may reach.
        minibatches: updates per pass; each learns from the whole unrolls of its share of the envs.
        learning_rate: step size of the optimizer.
        entropy_cost: weight of the policy's entropy (nats).
        unroll_length: env steps between two cuts of the return (or between updates, in `exact`).
        value_cost: weight of half the squared value error.
        gamma: discount per env step.
        lambda_: decay of the trace; 1 gives n-step returns.
        max_grad_norm: clip of the member's global gradient norm.
        rmsprop_decay: decay of RMSProp's mean square.
        rmsprop_epsilon: inside RMSProp's root.
        adam_epsilon: outside Adam's root.
        name: by which a config chooses the agent.
        acting: who may act for it. With `actors` blocks come from policies that are some updates old; with `hogwild`
            several processes change what is learned without locks.
    """

    acting: ClassVar[frozenset[str]] = frozenset({"inline"})
    name: str = ""
    rewards: Literal["auto", "clip", "normalize", "none", "asymmetric", "asymmetric_figure"] = "auto"
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    unroll_mode: Literal["budget", "exact"] = "budget"
    block_length: int | None = None
    minibatches: int = 1
    learning_rate: float = live(6e-4, low=0.0, high=1e6)
    entropy_cost: float = live(0.01, low=0.0)
    unroll_length: int = live(20, low=1, integer=True)
    value_cost: float = live(0.5, low=0.0)
    gamma: float = live(0.99, low=0.0, high=1.0)
    lambda_: float = live(1.0, low=0.0, high=1.0)
    max_grad_norm: float = live(40.0, low=0.0)
    rmsprop_decay: float = live(0.99, low=0.0, high=1.0)
    rmsprop_epsilon: float = live(1e-5, low=0.0)
    adam_epsilon: float = live(1e-5, low=0.0)

    def build(self, observation_space: Any, action_space: Any) -> Any:
        """The agent for an env's spaces; override it in the settings of an agent of your own.

        Raises:
            ValueError: in one line, where the agent cannot read these observations or act in this space.
        """
        module = importlib.import_module(f"pbtrl.agents.{self.name}")
        return module.make(self, observation_space, action_space)


@dataclass(frozen=True, kw_only=True)
class PolicyGradientSettings(ActorCriticSettings):
    """What the agents share that follow a policy gradient.

    Attributes:
        advantages: `normalize` to zero mean and unit variance over what an update learns from, or `raw`.
        reduction: `sum` (the papers) or `mean` of the losses over what an update learns from; with sums a learning
            rate belongs to a block size.
    """

    advantages: Literal["normalize", "raw"] = "raw"
    reduction: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True, kw_only=True)
class ImpalaSettings(PolicyGradientSettings):
    """IMPALA with V-trace (Espeholt et al. 2018, arXiv 1802.01561), section 4 and tables D.1 and G.1.

    Attributes:
        rho_bar: clip of the importance ratio in the temporal difference.
        c_bar: clip of the trace's ratio.
        pg_rho_bar: clip of the policy gradient's ratio.
        epochs: how often a block is learned from at most; V-trace corrects the later passes.
        max_log_ratio: the pass in which a member's mean |log importance ratio| (nats) first exceeds this is its last.
            Without it, a policy whose variance has shrunk moves many standard deviations per block, and collapses.
    """

    acting: ClassVar[frozenset[str]] = frozenset({"inline", "actors", "hogwild"})
    name: Literal["impala"] = "impala"
    rho_bar: float = live(1.0, low=0.0)
    c_bar: float = live(1.0, low=0.0)
    pg_rho_bar: float = live(1.0, low=0.0)
    epochs: int = live(1, low=1, integer=True)
    max_log_ratio: float = live(1.0, low=0.0)


@dataclass(frozen=True, kw_only=True)
class A3CSettings(PolicyGradientSettings):
    """A3C, or A2C in one process (Mnih et al. 2016, arXiv 1602.01783), section 4 and supplement 8.

    `unroll_length` is the paper's t_max, after which the member updates.
    """

    acting: ClassVar[frozenset[str]] = frozenset({"inline", "hogwild"})
    name: Literal["a3c"] = "a3c"
    std: Literal["free", "softplus", "softplus_variance"] = "softplus_variance"
    unroll_mode: Literal["budget", "exact"] = "exact"
    unroll_length: int = live(5, low=1, integer=True)


@dataclass(frozen=True, kw_only=True)
class VMPOSettings(ActorCriticSettings):
    """V-MPO (Song et al. 2019, arXiv 1909.12238), sections 3 and 4, tables 1 to 3 and appendix C.

    Its losses are means. The paper trains without an entropy term and without a clip of gradients.

    Attributes:
        temperature: eta that a member starts from.
        alpha: multiplier of the constraints on the divergence that a member starts from.
        target_period: blocks between two copies of the online network into the target network, which acts.
        eps_temperature: bound (nats) on how far the weights of the better half may be from uniform.
        eps_kl: bound on KL(target || online) of a categorical policy (nats).
        eps_mean: bound on the part of a Gaussian's divergence that its mean makes.
        eps_covariance: bound on the part that its covariance makes.
        popart_rate: weight of one value target in PopArt's statistics.
    """

    name: Literal["vmpo"] = "vmpo"
    std: Literal["free", "softplus", "softplus_variance"] = "softplus"
    optimizer: Literal["rmsprop", "adam"] = "adam"
    temperature: float = fixed(1.0, low=1e-8)
    alpha: float = fixed(1.0, low=1e-8)
    learning_rate: float = live(1e-4, low=0.0, high=1e6)
    entropy_cost: float = live(0.0, low=0.0)
    value_cost: float = live(1.0, low=0.0)
    max_grad_norm: float = live(1e6, low=0.0)
    target_period: int = live(10, low=1, integer=True)
    eps_temperature: float = live(0.1, low=0.0)
    eps_kl: float = live(0.005, low=0.0)
    eps_mean: float = live(0.0075, low=0.0)
    eps_covariance: float = live(1e-5, low=0.0)
    popart_rate: float = live(1e-4, low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class UnrealSettings(PolicyGradientSettings):
    """UNREAL (Jaderberg et al. 2016, arXiv 1611.05397), section 3 and its appendix: A3C with auxiliary tasks.

    Pixel control is learned where observations are images and actions discrete. Elsewhere there are no pixels to
    control, or no actions to have a value each: the agent has the other two tasks, and `pixel_control_cost` and
    `pixel_control_gamma` have no effect.

    Attributes:
        replay: env steps of a member, over all its envs, that the auxiliary tasks learn from: the last ones. At least
            two more per env than an update learns from.
        cell_size: pixels along the side of a cell, whose change pixel control values.
        pixel_control_cost: weight of half the squared error of the actions' values, summed over cells.
        pixel_control_gamma: discount per env step of the change of pixels.
        reward_prediction_cost: weight of the cross-entropy (nats) of what the next reward is: none, positive, negative.
        value_replay_cost: weight of half the squared value error on replayed steps.
    """

    acting: ClassVar[frozenset[str]] = frozenset({"inline", "hogwild"})
    name: Literal["unreal"] = "unreal"
    core: Literal["none", "lstm"] = "lstm"
    use_last_action_reward: bool = True
    std: Literal["free", "softplus", "softplus_variance"] = "softplus_variance"
    unroll_mode: Literal["budget", "exact"] = "exact"
    replay: int = fixed(2000, low=1)
    cell_size: int = fixed(4, low=1)
    entropy_cost: float = live(1e-3, low=0.0)
    unroll_length: int = live(20, low=1, integer=True)
    pixel_control_cost: float = live(0.05, low=0.0)
    pixel_control_gamma: float = live(0.9, low=0.0, high=1.0)
    reward_prediction_cost: float = live(1.0, low=0.0)
    value_replay_cost: float = live(1.0, low=0.0)


@dataclass(frozen=True, kw_only=True)
class FeudalSettings(PolicyGradientSettings):
    """Feudal Networks (Vezhnevets et al. 2017, arXiv 1703.01161), section 3: a manager sets goals for a worker.

    Both have a memory of their own, so `core` is `none`. `gamma` is the worker's.

    Attributes:
        goal_units: width of goals and of the states that they are directions between; a multiple of 8.
        embedding: width of what the worker is told of its goals; a multiple of 8.
        horizon: env steps that a goal is for; also the number of the manager's cores, each of which works at every
            `horizon`-th step.
        random_goals: probability per env step of a goal drawn at random (the paper: small).
        manager_gamma: discount per env step of the manager's return.
        intrinsic_cost: weight of the reward for going where the goals point, beside the env's: of a cosine beside
            clipped rewards, as published; beside normalized ones of (1 - gamma) times a cosine.
    """

    acting: ClassVar[frozenset[str]] = frozenset({"inline", "hogwild"})
    name: Literal["feudal"] = "feudal"
    std: Literal["free", "softplus", "softplus_variance"] = "softplus_variance"
    unroll_mode: Literal["budget", "exact"] = "exact"
    goal_units: int = fixed(256, low=8)
    embedding: int = fixed(16, low=8)
    horizon: int = fixed(10, low=1)
    random_goals: float = fixed(0.01, low=0.0, high=1.0)
    unroll_length: int = live(100, low=1, integer=True)
    gamma: float = live(0.95, low=0.0, high=1.0)
    manager_gamma: float = live(0.999, low=0.0, high=1.0)
    intrinsic_cost: float = live(0.5, low=0.0)


AgentSettings = ActorCriticSettings
AGENTS: dict[str, type[AgentSettings]] = {
    "impala": ImpalaSettings,
    "a3c": A3CSettings,
    "vmpo": VMPOSettings,
    "unreal": UnrealSettings,
    "feudal": FeudalSettings,
}


def live_hyperparameters(settings: AgentSettings | type[AgentSettings]) -> dict[str, Any]:
    """Name -> default of every live hyperparameter, in the order of declaration."""
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata.get("live")}
