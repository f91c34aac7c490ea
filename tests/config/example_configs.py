"""Configs that the tests of the config change."""

TWO_LINES = """\
env: {id: CartPole-v1}
budget: {env_steps_per_member: 1e6}
"""
FIVE_LINES = """\
env: {id: CartPole-v1}
budget: {env_steps_per_member: 1e6}
hparams:
  learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}
"""
MIXED = """\
env: {id: CartPole-v1}
budget: {env_steps_per_member: 1e6}
population: {mix: {fast: 2, vmpo: 1}}
agents:
  fast: {name: a3c, entropy_cost: 0.02}
  vmpo: {hparams: {eps_kl: {prior: log_uniform, low: 1e-3, high: 1e-1}}}
hparams:
  learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}
  unroll_length: {prior: int_uniform, low: 5, high: 30}
"""
TRAINABLE = """\
trainable: {name: quadratic}
budget: {env_steps_per_member: 7}
"""
ONE_ENV = """\
env: {id: CartPole-v1, num_envs: 1}
budget: {env_steps_per_member: 1e6}
"""
TRIALS = """\
trainable: {name: constant}
budget: {env_steps_per_member: 81}
hparams: {x: {prior: uniform, low: 0, high: 1}, kind: {prior: choice, values: [a, b, c]}}
"""
EMPTY = ""
