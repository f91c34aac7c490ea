"""UNREAL's auxiliary tasks (Jaderberg et al. 2016, arXiv 1611.05397): pixel control and reward prediction.

Axes: `[..., A action, h, w]`, where h x w are the cells of a frame `[C, H, W]`; leading axes are elementwise. Pixel
control learns action values of changing the image in each cell; its loss is `losses.value_loss` of the chosen action's
value. Value replay needs only `returns` and `losses`.
"""

import torch
from torch import Tensor

from pbtrl.agents.returns import n_step_returns


def pixel_control_rewards(frames: Tensor, cell_size: int) -> Tensor:
    """Mean absolute intensity change from one frame to the next, over the pixels and channels of each cell.

    Args:
        frames: `[..., T+1, C, H, W]` in [0, 1], or uint8. H and W must be multiples of `cell_size`.
        cell_size: side of a cell in pixels.

    Returns:
        `[..., T, H / cell_size, W / cell_size]` in [0, 1]. The change into the first frame of a new episode is not
        special; the caller must mask that step.
    """
    frames = frames.float() / 255.0 if frames.dtype == torch.uint8 else frames
    change = (frames[..., 1:, :, :, :] - frames[..., :-1, :, :, :]).abs()
    *outer, height, width = change.shape
    cells = change.reshape(*outer, height // cell_size, cell_size, width // cell_size, cell_size)
    return cells.movedim((-4, -2), (-5, -4)).flatten(-3).mean(-1)


def pixel_control_targets(discounts: Tensor, rewards: Tensor, next_q: Tensor, cuts: Tensor) -> Tensor:
    """n-step Q-learning targets per cell: R_t = r_t + discount_t (max_a Q_{t+1}(a) at a cut or the end, else R_{t+1}).

    Args:
        discounts: `[T, ...]`, pixel control's own discount (0.9 in the paper), and 0 after an episode's last step.
        rewards: `[T, ..., h, w]`.
        next_q: `[T, ..., A, h, w]`, Q of the state *after* step t.
        cuts: bool, with axes that are a prefix of `[T, ...]`.

    Returns:
        `[T, ..., h, w]`, without gradient.
    """
    return n_step_returns(discounts[..., None, None], rewards, next_q.amax(-3), cuts)


def dueling(value: Tensor, advantages: Tensor) -> Tensor:
    """Combine the dueling streams: Q(a) = V + A(a) - mean_a A (Wang et al. 2016, arXiv 1511.06581, equation 9).

    Args:
        value: `[..., 1, h, w]`.
        advantages: `[..., A, h, w]`.

    Returns:
        `[..., A, h, w]`.
    """
    return value + advantages - advantages.mean(-3, keepdim=True)


def reward_class(rewards: Tensor) -> Tensor:
    """Class of each reward for reward prediction: 0 zero, 1 positive, 2 negative; int64, of any shape."""
    return (rewards > 0).long() + 2 * (rewards < 0).long()
