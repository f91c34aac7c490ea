"""Default settings: those of the papers, and those that all published results used."""

import pytest

from pbtrl.agents.settings import AGENTS

PRINTED = {
    "impala": {"unroll_length": 20, "gamma": 0.99, "rho_bar": 1.0, "c_bar": 1.0, "rmsprop_decay": 0.99,
               "max_grad_norm": 40.0, "epochs": 1, "max_log_ratio": 1.0},
    "a3c": {"unroll_length": 5, "gamma": 0.99, "entropy_cost": 0.01, "rmsprop_decay": 0.99, "lambda_": 1.0,
            "std": "softplus_variance"},
    "vmpo": {"target_period": 10, "eps_temperature": 0.1, "learning_rate": 1e-4, "entropy_cost": 0.0, "eps_kl": 0.005,
             "popart_rate": 1e-4},
    "ppo": {"learning_rate": 3e-4, "entropy_cost": 0.0, "value_cost": 0.5, "gamma": 0.99, "lambda_": 0.95, "clip": 0.2,
            "value_clip": True, "epochs": 10, "minibatches": 32, "max_grad_norm": 0.5, "adam_epsilon": 1e-5,
            "log_std": 0.0, "advantages": "normalize", "optimizer": "adam"},
    "unreal": {"unroll_length": 20, "replay": 2000, "cell_size": 4, "pixel_control_gamma": 0.9, "core_units": 256},
    "feudal": {"goal_units": 256, "embedding": 16, "horizon": 10, "gamma": 0.95, "manager_gamma": 0.999},
}  # fmt: skip


@pytest.mark.parametrize("name", AGENTS)
def test_defaults(name):
    settings = AGENTS[name]()
    assert {field: getattr(settings, field) for field in PRINTED[name]} == PRINTED[name]
