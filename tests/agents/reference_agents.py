"""One member of an agent as the papers write it: float64, one env and one step at a time, no flat buffers."""

import torch


class ReferenceAgent:
    """One member: parameters as leaf tensors, and layers common to all networks; `h` has its hyperparameters."""

    def __init__(self, learner, state, slot, h):
        self.learner, self.net, self.h = learner, learner.net, {name: value[slot].item() for name, value in h.items()}
        views = learner.layout.views(state.tensors["params"])
        self.leaves = {name: view[slot].double().clone().requires_grad_() for name, view in views.items()}

    def features(self, observation):
        own, x = self.leaves, observation.double()
        if not self.learner.image:
            for i in range(len(self.net.torso.hidden)):
                x = torch.tanh(x @ own[f"torso.{i}.weight"] + own[f"torso.{i}.bias"][0])
            return x[: self.net.torso.hidden[-1]]
        x = x[None] / 255
        for i, (_, _, stride) in enumerate(self.net.torso.convolutions):
            x = torch.conv2d(x, own[f"conv.{i}.weight"], own[f"conv.{i}.bias"], stride).relu()
        return (x.flatten() @ own["dense.weight"] + own["dense.bias"]).relu()

    def joined(self, observation, action, reward, first):
        """Features, with the last action and reward if the network uses them."""
        received = torch.zeros(
            self.net.action_reward_size + 1 if self.net.action_reward_size else 0, dtype=torch.float64
        )
        if self.net.action_reward_size and not first:
            received[:-1] = action if action.ndim else torch.eye(self.net.action_reward_size)[action]
            received[-1] = max(-1.0, min(1.0, reward.item()))
        return torch.cat([self.features(observation), received])

    def lstm(self, name, x, memory):
        """Output and cell after one step."""
        own = (self.leaves[f"{name}.{part}"] for part in ("input", "hidden", "bias"))
        gates = sum(x @ weight for x, weight in zip((x, memory[0], torch.ones(1).double()), own, strict=True))
        enter, forget, leave, new = gates.chunk(4)
        cell = torch.sigmoid(forget) * memory[1] + torch.sigmoid(enter) * torch.tanh(new)
        return [torch.sigmoid(leave) * torch.tanh(cell), cell]

    def head(self, name, x):
        return x @ self.leaves[f"{name}.weight"] + self.leaves[f"{name}.bias"][0]

    def transform_rewards(self, rewards):
        clips = self.learner.settings.rewards == "clip"
        return (rewards.clamp(-1, 1) if clips else rewards).double().numpy()

    def unroll_memory(self, memory, t):
        """Memory at step t of a block, detached at the start of an unroll."""
        return [x.detach() for x in memory] if t and t % self.h["unroll_length"] == 0 else memory

    def cuts(self, over):
        return [bool(o) or (t + 1) % self.h["unroll_length"] == 0 for t, o in enumerate(over)]
