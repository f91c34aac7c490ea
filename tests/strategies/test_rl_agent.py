"""Agent, PPO update and predictive model of `rl_search`, against torch and literal transcriptions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pbtrl.strategies.rl_agent import (
    SearchAgent,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    ppo_loss,
    standardize,
)
from pbtrl.strategies.rl_model import fit_model
from pbtrl.strategies.rl_rules import AgentRules
from pbtrl.system.torch_settings import single_thread


def agent(n: int = 3, *, sequential: bool = True, seed: int = 0, **rules: float) -> SearchAgent:
    return SearchAgent(n, AgentRules(**rules), np.random.default_rng(seed), sequential=sequential)  # type: ignore[arg-type]


def noise(count: int, n: int = 3, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, n))


def test_gaussian_formulas_equal_torch() -> None:
    rng = np.random.default_rng(0)
    a, m, m0 = (torch.tensor(rng.normal(size=(4, 3))) for _ in range(3))
    s, s0 = (torch.tensor(rng.uniform(0.05, 2, (4, 3))) for _ in range(2))
    one, start = torch.distributions.Normal(m, s), torch.distributions.Normal(m0, s0)
    torch.testing.assert_close(gaussian_log_prob(a, m, s), one.log_prob(a))
    torch.testing.assert_close(gaussian_kl(m0, s0, m, s), torch.distributions.kl_divergence(start, one))
    torch.testing.assert_close(gaussian_entropy(s), one.entropy())


def test_kl_and_loss_equal_literal_transcriptions() -> None:
    rng = np.random.default_rng(0)
    new, old = rng.normal(scale=0.4, size=(2, 5, 3))
    advantages, clip = rng.normal(size=5), 0.2
    terms, clipped = [], 0
    for b in range(5):
        for t in range(3):
            ratio = math.exp(new[b, t] - old[b, t])
            limited = min(max(ratio, 1 - clip), 1 + clip)
            terms.append(min(ratio * advantages[b], limited * advantages[b]))
            clipped += ratio != limited
    assert 0 < clipped < 15
    result = ppo_loss(torch.tensor(new), torch.tensor(old), torch.tensor(advantages), clip)
    assert float(result) == pytest.approx(-sum(terms) / 15, rel=1e-12)
    kl = math.log(0.5 / 0.2) + (0.2**2 + (0.3 - 0.1) ** 2) / (2 * 0.5**2) - 1 / 2
    result = gaussian_kl(*(torch.tensor(x, dtype=torch.float64) for x in (0.3, 0.2, 0.1, 0.5)))
    assert float(result) == pytest.approx(kl, rel=1e-12)


def test_advantages_have_mean_zero_and_sd_one() -> None:
    np.testing.assert_allclose(standardize(np.array([1.0, 3.0])), [-1.0, 1.0])


@pytest.mark.parametrize("n", [4, 10, 12])
def test_equal_rewards_have_no_advantage(n: int) -> None:
    """The mean of 10 or 12 times 0.3 is rounded."""
    np.testing.assert_array_equal(standardize(np.full(n, 0.3)), np.zeros(n))


def test_episodes_record_the_distributions_they_were_drawn_from() -> None:
    one, eps = agent(), noise(6)
    episodes = one.draw(eps)
    mean, sd = one.distribution(episodes.inputs)
    torch.testing.assert_close(episodes.actions, mean + sd * torch.tensor(eps, dtype=torch.float32))
    torch.testing.assert_close(episodes.log_probs, torch.distributions.Normal(mean, sd).log_prob(episodes.actions))
    assert not episodes.inputs[:, 0].any()
    before = torch.stack([episodes.actions, mean, sd], -1)[:, :-1]
    torch.testing.assert_close(episodes.inputs[:, 1:], before)
    followed = one.follow(episodes.actions.numpy())
    torch.testing.assert_close(followed.log_probs, episodes.log_probs)


@pytest.mark.parametrize("sequential", [True, False])
def test_only_a_sequential_agent_depends_on_earlier_draws(sequential: bool) -> None:
    one, eps = agent(sequential=sequential), noise(2)
    eps[1, 1:] = eps[0, 1:]
    mean, sd = one.distribution(one.draw(eps).inputs)
    assert torch.equal(mean[0, :1], mean[1, :1])
    assert torch.equal(mean[0, 1:], mean[1, 1:]) != sequential
    assert torch.equal(sd[0, 1:], sd[1, 1:]) != sequential
    assert len(set(mean[0].tolist())) == 3


def test_standard_deviations_have_limits() -> None:
    one = agent(min_sd=0.2)
    for raw, expected in ((-100.0, 0.2), (100.0, 1.0)):
        with torch.no_grad():
            one._net["head"].bias[1] = raw
        assert one.distribution(one.draw(noise(2)).inputs)[1].flatten().tolist() == pytest.approx([expected] * 6)


def test_update_makes_rewarded_actions_likelier() -> None:
    one, other = agent(epochs=1), agent(epochs=1)
    for a, sign in ((one, 1.0), (other, -1.0)):
        episodes = a.draw(noise(64))
        before = a.distribution(episodes.inputs)[0].mean()
        a.update(episodes, sign * episodes.actions.mean(1).numpy(), 0.0)
        moved = float(a.distribution(episodes.inputs)[0].mean() - before)
        assert moved * sign > 0


def test_entropy_bonus_widens_the_policy() -> None:
    one = agent()
    episodes = one.draw(noise(16))
    before = one.distribution(episodes.inputs)[1].mean()
    one.update(episodes, np.zeros(16), 0.1)
    assert one.distribution(episodes.inputs)[1].mean() > before


def test_epochs_end_when_the_policy_has_moved() -> None:
    moved = []
    for target in (1e-9, 1e9):
        one = agent(epochs=10, target_kl=target)
        episodes = one.draw(noise(16))
        start = one.distribution(episodes.inputs)
        one.update(episodes, episodes.actions[:, 0].numpy(), 0.0)
        moved.append(float(gaussian_kl(*start, *one.distribution(episodes.inputs)).mean()))
    assert 0 < moved[0] < moved[1] / 3


def test_gradient_is_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda p, norm: norms.append(norm) or real(p, norm))
    one = agent(epochs=3, target_kl=1e9, max_grad_norm=0.25)
    one.update(one.draw(noise(4)), np.arange(4.0), 0.0)
    assert norms == [0.25] * 3


def test_clone_imitates_actions() -> None:
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (32, 2))
    actions[:, 1] = -actions[:, 0]
    one = agent(2)
    with single_thread():
        one.clone(actions, 300)
    mean, sd = one.distribution(one.follow(actions).inputs)
    np.testing.assert_allclose(mean[:, 1], actions[:, 1], atol=0.15)
    assert float(sd[:, 1].mean()) < 0.1 < float(sd[:, 0].mean())


def test_torch_is_left_as_it_was() -> None:
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    with single_thread():
        assert torch.get_num_threads() == 1
        one = agent()
        one.update(one.draw(noise(4)), np.arange(4.0), 0.01)
        fit_model(noise(8), np.arange(8.0), np.random.default_rng(0))
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_model_predicts_a_smooth_reward() -> None:
    rng = np.random.default_rng(0)
    x, new = rng.uniform(-1, 1, (200, 2)), rng.uniform(-1, 1, (50, 2))
    reward = lambda a: 100 - 20 * ((a - 0.3) ** 2).sum(1)  # noqa: E731
    model = fit_model(x, reward(x), np.random.default_rng(1))
    assert np.abs(model.predict(new) - reward(new)).mean() < 0.1 * reward(new).std()
    np.testing.assert_array_equal(model.predict(np.array([[3.0, -7.0]])), model.predict(np.array([[1.0, -1.0]])))


def test_model_of_equal_rewards_predicts_them() -> None:
    model = fit_model(noise(10), np.full(10, 0.3), np.random.default_rng(0))
    assert model.sd == 1.0
    assert model.predict(noise(2)) == pytest.approx(0.3, abs=0.5)
