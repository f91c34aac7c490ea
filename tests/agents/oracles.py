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


def gae(discounts, rewards, values, bootstrap_value, *, lambda_, cuts):
    """A_s = sum_{t=s}^{e} (gamma lambda)^{t-s} delta_t with e the first cut from s on; products recomputed, O(T^3)."""
    v, advantages = np.append(values, bootstrap_value), np.zeros(len(rewards))
    for s in range(len(rewards)):
        for t in range(s, len(rewards)):
            product = 1.0
            for i in range(s, t):
                product *= discounts[i] * lambda_
            advantages[s] += product * (rewards[t] + discounts[t] * v[t + 1] - v[t])
            if cuts[t]:
                break
    return v[:-1] + advantages, advantages


def n_step_returns(discounts, rewards, bootstraps, cuts):
    """G_s = sum_{t=s}^{e} gamma^{t-s} r_t + gamma^{e+1-s} bootstrap_e, e the first cut from s on, or the last step."""
    returns = np.zeros(len(rewards))
    for s in range(len(rewards)):
        discount = 1.0
        for t in range(s, len(rewards)):
            returns[s] += discount * rewards[t]
            discount *= discounts[t]
            if cuts[t] or t == len(rewards) - 1:
                returns[s] += discount * bootstraps[t]
                break
    return returns


def vmpo(advantages, temperature, eps_temperature, mask):
    """V-MPO's psi and L_eta for one member, as printed: no shift before exp, so for moderate numbers only."""
    live = [i for i in range(len(advantages)) if mask[i]]
    best = sorted(live, key=lambda i: -advantages[i])[: max(1, len(live) // 2)]
    exponentials = {i: np.exp(advantages[i] / temperature) for i in best}
    psi = np.zeros(len(advantages))
    for i in best:
        psi[i] = exponentials[i] / sum(exponentials.values())
    mean = sum(exponentials.values()) / len(best)
    return psi, temperature * eps_temperature + temperature * np.log(mean)


def gaussian_kl(mean_0, cov_0, mean_1, cov_1):
    """KL(N_0 || N_1) of full covariance matrices."""
    inverse, d = np.linalg.inv(cov_1), mean_1 - mean_0
    log_dets = np.linalg.slogdet(cov_1)[1] - np.linalg.slogdet(cov_0)[1]
    return 0.5 * (np.trace(inverse @ cov_0) - len(d) + d @ inverse @ d + log_dets)


def categorical_kl(p, q):
    """KL(p || q) of probabilities."""
    return sum(p[i] * np.log(p[i] / q[i]) for i in range(len(p)))


def popart(shift, second_moment, targets, *, rate, low, high):
    """One batch, target by target; every deviation is from the statistics before the batch. Returns scale too."""
    weight = min(1.0, rate * len(targets)) / len(targets)
    new_shift, new_second = shift, second_moment
    for g in targets:
        new_shift += weight * (g - shift)
        new_second += weight * (g * g - second_moment)
    return new_shift, new_second, min(max(np.sqrt(max(new_second - new_shift**2, 0.0)), low), high)


def pixel_control_rewards(frames, cell_size):
    """Pixel by pixel: `[T+1, C, H, W]` -> `[T, h, w]`."""
    time, channels, height, width = frames.shape
    rewards = np.zeros((time - 1, height // cell_size, width // cell_size))
    for t in range(time - 1):
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    change = abs(float(frames[t + 1, c, y, x]) - float(frames[t, c, y, x]))
                    rewards[t, y // cell_size, x // cell_size] += change / (channels * cell_size**2)
    return rewards


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
