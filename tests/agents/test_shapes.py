"""The public math refuses shapes that broadcasting would accept silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pbtrl.agents import losses, normalize, returns

X, Y, LAST = torch.zeros(5, 2, 3), torch.zeros(5, 2, 1), torch.zeros(2, 3)
ROW, EPS = torch.zeros(2, 4), torch.zeros(2)
POPART = normalize.init_popart(2)
CUTS = torch.zeros(5, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
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
        (lambda: losses.value_loss(X, X, Y), "mask has shape (5, 2, 1), but values has shape"),
        (lambda: losses.clipped_policy_loss(ROW, ROW, ROW[:1], EPS), "mask has shape (1, 4), but log_ratios has shape"),
        (lambda: losses.clipped_value_loss(ROW, ROW[:1], ROW, ROW, EPS), "old_values has shape (1, 4), but values has"),
        (lambda: normalize.popart_preserve(ROW[:1], ROW, POPART, POPART), "old has shape (2,) in place of (1,), one"),
        (lambda: losses.clipped_policy_loss(ROW, ROW, ROW, EPS[:1]), "clip has shape (1,) in place of (2,), one value"),
        (lambda: losses.clipped_value_loss(ROW, ROW, ROW, ROW, ROW[:, :1]), "clip has shape (2, 1) in place of (2,)"),
        (lambda: losses.entropy_bonus(X, Y), "mask has shape (5, 2, 1), but entropies has shape"),
        (lambda: losses.normalize_advantages(ROW, ROW[:, :1]), "mask has shape (2, 1), but advantages has shape"),
        (
            lambda: losses.weights_and_temperature(ROW, EPS[:1], 0.1, ROW > 0),
            "temperature has shape (1,), but advantages[",
        ),
        (
            lambda: losses.weights_and_temperature(ROW, EPS, EPS[:1], ROW > 0),
            "eps_temperature has shape (1,) in place of",
        ),
        (lambda: losses.weights_and_temperature(ROW, EPS, 0.1, ROW[:, :1] > 0), "chosen has shape (2, 1), but advan"),
        (lambda: losses.better_half(ROW, ROW[:1] > 0), "live has shape (1, 4), but advantages has shape (2, 4)"),
        (lambda: losses.gaussian_kl_decoupled(X, X, Y, X), "target_mean has shape (5, 2, 1), but mean has shape"),
        (lambda: losses.categorical_kl(X, Y), "target_logits has shape (5, 2, 1), but logits has shape"),
        (lambda: losses.lagrange_loss(EPS, 0.1, ROW, ROW[:, :1]), "mask has shape (2, 1), but kl has shape (2, 4)"),
        (lambda: losses.lagrange_loss(EPS[:1], 0.1, ROW, ROW), "multiplier has shape (1,) in place of (2,)"),
        (lambda: losses.lagrange_loss(EPS, ROW[:, :1], ROW, ROW), "epsilon has shape (2, 1) in place of (2,)"),
        (lambda: normalize.update_moments(normalize.init_moments(1), ROW), "x has shape (2,) without its samples, but"),
        (
            lambda: normalize.update_moments(normalize.init_moments(5, (1,)), X),
            "x has shape (5, 3) without its samples",
        ),
        (lambda: normalize.update_moments(normalize.init_moments(2), ROW, ROW.T), "mask has shape (4, 2), which is no"),
        (lambda: normalize.popart_update(normalize.init_popart(2), ROW, ROW[:, :1], rate=0.1), "mask has shape (2, 1)"),
        (lambda: normalize.popart_update(normalize.init_popart(2), ROW, ROW, rate=EPS[:1]), "rate has shape (1,) in"),
        (lambda: normalize.popart_preserve(ROW, ROW, normalize.init_popart(1), POPART), "old has shape (1,) in place"),
        (lambda: normalize.popart_preserve(ROW, ROW, POPART, normalize.init_popart(1)), "new has shape (1,) in place"),
        (lambda: normalize.popart_preserve(ROW, ROW[:1], POPART, POPART), "old has shape (2,) in place of (1,)"),
        (lambda: normalize.update_return_scale({}, X, X > 0, EPS), "gamma has shape (2,) in place of (5,), one value"),
        (
            lambda: normalize.update_return_scale({}, X, Y.bool(), torch.zeros(5)),
            "ends has shape (5, 2, 1), but rewards has shape (5, 2, 3)",
        ),
    ],
)
def test_wrong_shape_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value).startswith(message)
