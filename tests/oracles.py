"""Slow, literal numpy transcriptions of the papers' formulas, one member and one environment at a time."""

import numpy as np


def vtrace(
    log_rhos,
    discounts,
    rewards,
    values,
    bootstrap_value,
    *,
    rho_bar=1.0,
    c_bar=1.0,
    pg_rho_bar=1.0,
    lambda_=1.0,
):
    """V-trace over one piece without cuts, O(T^2): equation 1 of the paper, as a sum of products.

        v_s = V(x_s) + sum_{t=s}^{s+n-1} gamma^{t-s} (prod_{i=s}^{t-1} c_i) delta_t V
        delta_t V = rho_t (r_t + gamma V(x_{t+1}) - V(x_t))

    rho_t = min(rho_bar, pi/mu), c_i = lambda min(c_bar, pi/mu), gamma^{t-s} the product of the discounts.
    """
    ratios, length = np.exp(log_rhos), len(rewards)
    v = np.append(values, bootstrap_value)
    vs = np.array(v)
    for s in range(length):
        for t in range(s, length):
            product = 1.0
            for i in range(s, t):
                product *= discounts[i] * lambda_ * min(c_bar, ratios[i])
            delta = min(rho_bar, ratios[t]) * (rewards[t] + discounts[t] * v[t + 1] - v[t])
            vs[s] += product * delta
    advantages = np.zeros(length)
    for s in range(length):
        # "v_s at the last bootstrap is V(x_{s+n})"; rlax: q bootstraps on lambda v + (1 - lambda) V.
        q = rewards[s] + discounts[s] * (lambda_ * vs[s + 1] + (1 - lambda_) * v[s + 1])
        advantages[s] = min(pg_rho_bar, ratios[s]) * (q - v[s])
    return vs[:-1], advantages


def vtrace_in_pieces(log_rhos, discounts, rewards, values, bootstrap_value, *, cuts, **bars):
    """Cuts make independent pieces, each of which bootstraps from the value that begins the next."""
    v = np.append(values, bootstrap_value)
    pieces, start = [], 0
    for t in range(len(rewards)):
        if cuts[t] or t == len(rewards) - 1:
            piece = slice(start, t + 1)
            args = log_rhos[piece], discounts[piece], rewards[piece], values[piece], v[t + 1]
            pieces.append(vtrace(*args, **bars))
            start = t + 1
    return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))


def n_step_return(discounts, rewards, bootstrap_value):
    """R_t = r_t + discount_t R_{t+1}, R_T = V(x_T): Mnih et al. 2016, algorithm S3."""
    returns, following = [], bootstrap_value
    for t in reversed(range(len(rewards))):
        following = rewards[t] + discounts[t] * following
        returns.append(following)
    return np.array(returns[::-1])


def rmsprop(params, gradients, *, learning_rate, decay, epsilon):
    """TensorFlow 1's RMSProp without momentum: epsilon inside the root, the mean square starts at 1."""
    mean_square = np.ones_like(params)
    for g in gradients:
        mean_square = decay * mean_square + (1 - decay) * g * g
        params = params - learning_rate * g / np.sqrt(mean_square + epsilon)
    return params, mean_square


def adam(params, gradients, *, learning_rate, beta1, beta2, epsilon):
    """Kingma & Ba 2015, algorithm 1, line by line."""
    m, v = np.zeros_like(params), np.zeros_like(params)
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        params = params - learning_rate * m_hat / (np.sqrt(v_hat) + epsilon)
    return params, m, v
