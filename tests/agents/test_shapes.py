"""The public math refuses shapes that broadcasting would accept silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pbtrl.agents import losses, normalize, returns

X, Y, LAST = torch.zeros(5, 2, 3), torch.zeros(5, 2, 1), torch.zeros(2, 3)
ROW, EPS = torch.zeros(2, 4), torch.zeros(2)
CUTS = torch.zeros(5, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: returns.vtrace(Y, X, X, X, LAST), "log_rhos has shape (5, 2, 1), but rewards has shape (5, 2, 3)"),
        (lambda: returns.vtrace(X, X, X, Y, LAST), "values has shape (5, 2, 1), but rewards has shape (5, 2, 3)"),
        (lambda: returns.vtrace(X, X, X, X, LAST[:1]), "bootstrap_value has shape (1, 3), but rewards[0] has shape"),
        (lambda: returns.vtrace(X, X, X, X, LAST, cuts=CUTS), "cuts has shape (5, 3), which is no prefix of rewards'"),
        (lambda: returns.gae(Y, X, X, LAST), "discounts has shape (5, 2, 1), but rewards has shape (5, 2, 3)"),
        (lambda: returns.n_step_returns(X, X, Y, CUTS[:, :2]), "bootstraps has shape (5, 2, 1), but rewards has"),
        (lambda: returns.n_step_returns(X, X, X, CUTS), "cuts has shape (5, 3), which is no prefix of rewards'"),
        (lambda: losses.policy_gradient_loss(X, Y, X), "advantages has shape (5, 2, 1), but log_probs has shape"),
        (lambda: losses.value_loss(X, Y, X), "targets has shape (5, 2, 1), but values has shape"),
        (lambda: losses.entropy_bonus(X, Y), "mask has shape (5, 2, 1), but entropies has shape"),
        (lambda: losses.normalize_advantages(ROW, ROW[:, :1]), "mask has shape (2, 1), but advantages has shape"),
        (lambda: losses.vmpo_weights_and_temperature(ROW, EPS[:1], 0.1), "temperature has shape (1,), but advantages["),
        (lambda: losses.gaussian_kl_decoupled(X, X, Y, X), "target_mean has shape (5, 2, 1), but mean has shape"),
        (lambda: losses.categorical_kl(X, Y), "target_logits has shape (5, 2, 1), but logits has shape"),
        (lambda: losses.lagrange_loss(EPS, 0.1, ROW, ROW[:, :1]), "mask has shape (2, 1), but kl has shape (2, 4)"),
        (lambda: normalize.update_moments(normalize.init_moments(2), ROW, ROW.T), "mask has shape (4, 2), which is no"),
        (lambda: normalize.popart_update(normalize.init_popart(2), ROW, ROW[:, :1], rate=0.1), "mask has shape (2, 1)"),
        (
            lambda: normalize.update_return_scale({}, X, Y.bool(), torch.zeros(5)),
            "ends has shape (5, 2, 1), but rewards has shape (5, 2, 3)",
        ),
    ],
)
def test_wrong_shape_is_named(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(said)
