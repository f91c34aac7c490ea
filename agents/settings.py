"""Settings of each agent, as frozen dataclasses; this module does not import torch.

A field with `live` in its metadata is a *live hyperparameter*: its value here is the default, `hparams:` in a config
may search it, and PBT may change it at any report without a restart. All other fields are fixed for a run. Some of them
are *structural*: they determine the shapes of the learned tensors and are copied together with the weights.

To add an agent, write `agents/<name>.py` with the algorithm and a `make` function, and add a settings class and its
entry in `AGENTS` here.
"""

import importlib
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal


def live(default: float, *, low: float | None = None, high: float | None = None, integer: bool = False) -> Any:
    """Declare a live hyperparameter, with its default and the closed interval of valid values."""
    return field(default=default, metadata={"live": True, "low": low, "high": high, "integer": integer})


def fixed(default: Any, *, low: float, high: float | None = None) -> Any:
    """Declare a setting that is fixed for a run, with its default and the closed interval of valid values.

    For a tuple, the interval applies to each element.
    """
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Settings of the network, its inputs and its action distribution, shared by all agents.

    Attributes:
        network: `auto` uses `mlp` for vectors and `shallow` for images. `shallow` is IMPALA's feed-forward net for
            Atari (conv 16@8x8/4, conv 32@4x4/2, 256 units), `nature` the DQN net (32@8x8/4, 64@4x4/2, 64@3x3/1, 512
            units), and `deep` IMPALA's residual net (15 convolutions, 256 units). `mlp` has separate stacks of `hidden`
            units for policy and value, or a single stack with `core` or `use_last_action_reward`.
        hidden: widths of the hidden layers of `mlp`.
        activation: function of the hidden layers of `mlp`.
        core: `lstm` puts an LSTM between the features and the heads; its state is reset at the start of an episode.
        core_units: width of the LSTM.
        use_last_action_reward: also feed the last action and the last reward (clipped to [-1, 1]) to the network.
        std: standard deviation of a Gaussian policy. `free` is one learned parameter per action dimension. `softplus`
            is the softplus of a network output; with `softplus_variance`, that is the variance instead.
        log_std: logarithm of the initial standard deviation.
        actions: mapping from a Gaussian's sample to a bounded action: `clip` (with the log-probability of the unclipped
            sample) or `squash` (tanh, with the change of variables).
        observations: `normalize` (running mean and variance per member, clipped at 10), `raw`, or `auto`, which
            normalizes vectors only. Images are always divided by 255.
        precision: data type of the learner's convolutions: `bfloat16` (autocast), `float32`, or `auto`, which uses
            bfloat16 if the processor supports it (it is many times slower otherwise).
    """

    network: Literal["auto", "mlp", "shallow", "nature", "deep"] = "auto"
    hidden: tuple[int, ...] = fixed((64, 64), low=1)
    activation: Literal["tanh", "relu", "elu"] = "tanh"
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
    """Settings shared by the actor-critic agents.

    Attributes:
        rewards: transformation of the rewards used for learning: `clip` to [-1, 1], `normalize` by the running standard
            deviation of the discounted return, `none`, or `auto`, which clips for images and normalizes for vectors.
            `asymmetric` is IMPALA's optimistic clipping as in its published code: 5 tanh(r / 5), times 0.3 for negative
            rewards. `asymmetric_figure` is the variant in the paper's figure: 5 tanh r for positive and 0.3 tanh r for
            negative rewards. Fitness always uses raw rewards.
        optimizer: `rmsprop` (TensorFlow's form, epsilon inside the root) or `adam`.
        unroll_mode: with `budget`, every update learns from a block of `block_length` steps, which is cut every
            `unroll_length` steps. With `exact`, the member updates every `unroll_length` steps.
        block_length: env steps per env in a block; by default the largest `unroll_length` that the search can reach.
        minibatches: updates per pass; each uses the complete unrolls of its share of the envs.
        learning_rate: step size of the optimizer.
        entropy_cost: weight of the policy's entropy (nats).
        unroll_length: env steps between two cuts of the return, or between two updates with `unroll_mode: exact`.
        value_cost: weight of half the squared value error.
        gamma: discount per env step.
        lambda_: decay of the trace; 1 gives n-step returns.
        max_grad_norm: clip of the member's global gradient norm.
        rmsprop_decay: decay of RMSProp's mean square.
        rmsprop_epsilon: epsilon of RMSProp, inside the root.
        adam_epsilon: epsilon of Adam, outside the root.
        name: name of the agent in a config.
        acting: supported values of `acting.mode`. With `actors`, blocks come from policies that are a few updates old.
            With `hogwild`, several processes update the parameters without locks.
        not_hogwild: why the agent does not support `acting.mode: hogwild`, if it does not.
        shuffles: whether minibatches are drawn from a whole block rather than from contiguous envs, in equal numbers.
    """

    acting: ClassVar[frozenset[str]] = frozenset({"inline"})
    not_hogwild: ClassVar[str] = "learns more than weights, which cannot be shared without locks"
    shuffles: ClassVar[bool] = False
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
        """The agent for an env's spaces, by the `make` of the module that holds the settings.

        Raises:
            ConfigProblem: the agent does not support these observations or actions; the message is one line.
        """
        own = type(self).__module__
        module = importlib.import_module(f"pbtrl.agents.{self.name}" if own == __name__ else own)
        return module.make(self, observation_space, action_space)


@dataclass(frozen=True, kw_only=True)
class PolicyGradientSettings(ActorCriticSettings):
    """Settings shared by the policy-gradient agents.

    Attributes:
        advantages: `normalize` to zero mean and unit variance over the transitions of an update, or `raw`.
        reduction: `sum` (as in the papers) or `mean` of the losses over the transitions of an update. With `sum`, the
            best learning rate depends on the block size.
    """

    advantages: Literal["normalize", "raw"] = "raw"
    reduction: Literal["sum", "mean"] = "sum"


@dataclass(frozen=True, kw_only=True)
class ImpalaSettings(PolicyGradientSettings):
    """IMPALA with V-trace (Espeholt et al. 2018, arXiv 1802.01561), section 4 and tables D.1 and G.1.

    Attributes:
        rho_bar: clip of the importance ratio in the TD error.
        c_bar: clip of the importance ratio in the trace.
        pg_rho_bar: clip of the importance ratio in the policy gradient.
        epochs: maximum passes over a block; V-trace corrects for the policy's change in later passes.
        max_log_ratio: a member stops after the pass in which its mean |log importance ratio| (nats) exceeds this.
            Otherwise a policy with a small variance can move many standard deviations per block, and collapse.
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

    `unroll_length` is the paper's t_max, the number of steps between updates. The default of `entropy_cost` is the
    paper's for discrete actions; for continuous ones it has 1e-4.
    """

    acting: ClassVar[frozenset[str]] = frozenset({"inline", "hogwild"})
    name: Literal["a3c"] = "a3c"
    std: Literal["free", "softplus", "softplus_variance"] = "softplus_variance"
    unroll_mode: Literal["budget", "exact"] = "exact"
    unroll_length: int = live(5, low=1, integer=True)


@dataclass(frozen=True, kw_only=True)
class VMPOSettings(ActorCriticSettings):
    """V-MPO (Song et al. 2019, arXiv 1909.12238), sections 3 and 4, tables 1 to 3 and appendix C.

    Its losses are means. The paper uses neither an entropy term nor gradient clipping.

    Attributes:
        temperature: initial temperature eta.
        alpha: initial Lagrange multiplier of the KL constraints.
        multiplier_learning_rate: step size of the optimizer for temperature and alphas. With that of the weights, as in
            the paper, they hardly move within less than 100,000 steps, and the bounds have no effect.
        epochs: gradient steps from a block, times `minibatches`; the paper makes one.
        target_period: gradient steps between copies of the online network into the target network, which acts. A copy
            waits for the end of the block.
        eps_temperature: bound on the KL (nats) of the better half's weights from uniform weights.
        eps_kl: bound on KL(target || online) of a categorical policy (nats).
        eps_mean: bound on the mean's part of a Gaussian policy's KL (nats).
        eps_covariance: bound on the covariance's part of a Gaussian policy's KL (nats).
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
    multiplier_learning_rate: float = live(0.1, low=0.0, high=1e6)
    epochs: int = live(1, low=1, integer=True)
    target_period: int = live(10, low=1, integer=True)
    eps_temperature: float = live(0.1, low=0.0)
    eps_kl: float = live(0.005, low=0.0)
    eps_mean: float = live(0.0075, low=0.0)
    eps_covariance: float = live(1e-5, low=0.0)
    popart_rate: float = live(1e-4, low=0.0, high=1.0)


@dataclass(frozen=True, kw_only=True)
class PPOSettings(ActorCriticSettings):
    """PPO (Schulman et al. 2017, arXiv 1707.06347), section 3; defaults as CleanRL's for continuous control.

    Its losses are means. The defaults are for 16 envs: 2048 transitions per block, 64 per minibatch.

    Attributes:
        advantages: `normalize` to zero mean and unit variance over the transitions of a minibatch, or `raw`.
        value_clip: whether to clip also the value's change, by `clip` in units of the transformed rewards' return.
        minibatches: updates per pass, each from as many transitions of the block in random order; with `core: lstm`,
            from the complete unrolls of as many envs. The number must divide that of the transitions, or of the envs.
        epochs: passes over a block.
        clip: bound on |r - 1|, with r the ratio of new to old policy, beyond which a transition has no policy gradient.
        target_kl: a member stops after a pass whose last minibatch has a mean KL(old || new) above this (nats).
    """

    not_hogwild: ClassVar[str] = "clips by the policy that acted, which the other processes would change meanwhile"
    shuffles: ClassVar[bool] = True
    name: Literal["ppo"] = "ppo"
    optimizer: Literal["rmsprop", "adam"] = "adam"
    advantages: Literal["normalize", "raw"] = "normalize"
    value_clip: bool = True
    log_std: float = fixed(0.0, low=-10.0, high=10.0)
    learning_rate: float = live(3e-4, low=0.0, high=1e6)
    entropy_cost: float = live(0.0, low=0.0)
    unroll_length: int = live(128, low=1, integer=True)
    lambda_: float = live(0.95, low=0.0, high=1.0)
    max_grad_norm: float = live(0.5, low=0.0)
    minibatches: int = live(32, low=1, integer=True)
    epochs: int = live(10, low=1, integer=True)
    clip: float = live(0.2, low=0.0)
    target_kl: float = live(1e6, low=0.0)


@dataclass(frozen=True, kw_only=True)
class UnrealSettings(PolicyGradientSettings):
    """UNREAL (Jaderberg et al. 2016, arXiv 1611.05397), section 3 and appendix: A3C with auxiliary tasks.

    Pixel control needs image observations and discrete actions. Otherwise the agent has only the other two tasks, and
    `pixel_control_cost` and `pixel_control_gamma` have no effect.

    Attributes:
        replay: most recent env steps of a member, over all its envs, that the auxiliary tasks learn from. Each env
            keeps at least two more steps than an update has.
        cell_size: side in pixels of pixel control's cells.
        pixel_control_cost: weight of half the squared error of the Q-values, summed over cells.
        pixel_control_gamma: discount per env step of pixel control.
        reward_prediction_cost: weight of the cross-entropy (nats) of the next reward's class: zero, positive, negative.
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

    Both have an LSTM already, so `core` is `none`. `gamma` is the worker's discount.

    Attributes:
        goal_units: size of the goals and of the state space in which they are directions; a multiple of 8.
        embedding: size of the goal embedding that the worker receives; a multiple of 8.
        horizon: env steps that a goal lasts; also the number of the manager's cores, each of which runs at every
            `horizon`-th step.
        random_goals: probability per env step of a random goal (small, in the paper).
        manager_gamma: discount per env step of the manager's return.
        intrinsic_cost: weight of the intrinsic reward relative to the env's reward. The intrinsic reward is a cosine,
            as published, or (1 - gamma) times a cosine if rewards are normalized.
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
    "ppo": PPOSettings,
    "unreal": UnrealSettings,
    "feudal": FeudalSettings,
}


def live_hyperparameters(settings: AgentSettings | type[AgentSettings]) -> dict[str, Any]:
    """Name -> default of every live hyperparameter, in order of declaration."""
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata.get("live")}
