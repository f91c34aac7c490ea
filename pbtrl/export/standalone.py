"""Parts of the exported policy.py, which needs numpy alone; `bundle` copies those that a policy needs.

They compute what agents/networks.py, agents/torsos.py, agents/feudal.py and agents/distributions.py do when a single
member acts. Axes: [B env, ...]. The state [B, H + L] is the recurrent state and, if the policy reads it, the encoded
last action; it is zero at the start of an episode.
"""
# What is below is copied, so it is as short as it can be.
# ruff: noqa: ANN001, ANN201, D101, D103
# mypy: allow-untyped-defs, allow-untyped-calls, allow-any-generics

import json
from pathlib import Path

import numpy as np


def dense(w, name, x):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


activate = np.tanh  # or one of these


def relu(x):
    return np.maximum(x, 0)


def elu(x):
    return np.maximum(x, 0) + np.exp(np.minimum(x, 0)) - 1


def vector(config, w, x):
    x = x.reshape(len(x), -1).astype(np.float32)
    if "shift" in w:
        x = np.clip((x - w["shift"]) * w["scale"], -10, 10)
    for i in range(config["layers"]):
        x = activate(dense(w, f"torso.{i}", x))
    return x[:, : config["features"]]


def one_hot(config, w, x):
    return vector(config, w, x[:, None] == np.arange(config["states"]) + config["first_state"])


def convolve(w, name, x, stride=1, pad=0):
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    x = np.lib.stride_tricks.sliding_window_view(x, w[f"{name}.weight"].shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return (np.tensordot(x, w[f"{name}.weight"], ((1, 4, 5), (1, 2, 3))) + w[f"{name}.bias"]).transpose(0, 3, 1, 2)


def image(config, w, x):
    x = x.transpose(0, *config["axes"]).reshape(len(x), *config["image"]) * np.float32(1 / 255)
    for i, stride in enumerate(config["strides"]):
        x = np.maximum(convolve(w, f"conv.{i}", x, stride), 0)
    return np.maximum(dense(w, "dense", x.reshape(len(x), -1)), 0)


def residual(config, w, x):
    x = x.transpose(0, *config["axes"]).reshape(len(x), *config["image"]) * np.float32(1 / 255)
    for i in range(config["sections"]):
        x = np.pad(convolve(w, f"section.{i}", x, pad=1), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max((-2, -1))
        for j in (0, 2):
            y = convolve(w, f"section.{i}.{j}", np.maximum(x, 0), pad=1)
            x = x + convolve(w, f"section.{i}.{j + 1}", np.maximum(y, 0), pad=1)
    return np.maximum(dense(w, "dense", np.maximum(x, 0).reshape(len(x), -1)), 0)


def lstm(w, name, x, output, cell):
    gates = x @ w[f"{name}.input"] + w[f"{name}.bias"] + output @ w[f"{name}.hidden"]
    i, f, o, new = np.split(gates, 4, -1)
    i, f, o = (0.5 * np.tanh(0.5 * gate) + 0.5 for gate in (i, f, o))
    cell = f * cell + i * np.tanh(new)
    return o * np.tanh(cell), cell


def feedforward(config, w, x, memory):
    return dense(w, "policy", x)[:, : config["outputs"]], memory


def recurrent(config, w, x, memory):
    output, cell = lstm(w, "core", x, *np.split(memory, 2, -1))
    return dense(w, "policy", output)[:, : config["outputs"]], np.concatenate([output, cell], -1)


def feudal(config, w, x, memory):
    *past, output, cell, phase = np.split(memory, config["splits"], -1)
    outputs, cells, goals = (m.reshape(len(x), config["horizon"], -1) for m in past)
    turn = (np.arange(config["horizon"]) == phase)[..., None]
    state = np.maximum(dense(w, "state", x), 0)
    new, new_cell = lstm(w, "manager", state, (outputs * turn).sum(1), (cells * turn).sum(1))
    outputs, cells = np.where(turn, new[:, None], outputs), np.where(turn, new_cell[:, None], cells)
    goal = outputs.mean(1) / np.sqrt(np.square(outputs.mean(1)).sum(-1, keepdims=True) + 1e-8)
    output, cell = lstm(w, "worker", x, output, cell)
    embedded = (goals.sum(1) + goal) @ w["embedding.weight"]
    head = (output.reshape(len(x), -1, embedded.shape[1]) * embedded[:, None]).sum(-1)
    past = [m.reshape(len(x), -1) for m in (outputs, cells, np.concatenate([goal[:, None], goals[:, :-1]], 1))]
    return head, np.concatenate([*past, output, cell, (phase + 1) % config["horizon"]], -1)


def categorical(config, w, logits, rng):
    index = (logits if rng is None else logits + rng.gumbel(size=logits.shape)).argmax(-1)
    return logits, index + config["start"], np.eye(config["outputs"], dtype=np.float32)[index]


def categoricals(config, w, logits, rng):
    slots = np.split(logits if rng is None else logits + rng.gumbel(size=logits.shape), config["slots"], -1)
    index = np.stack([slot.argmax(-1) for slot in slots], -1)
    last = np.eye(config["outputs"], dtype=np.float32)[index + np.array([0, *config["slots"]])].sum(1)
    action = index.reshape(len(index), *np.shape(config["start"])) + config["start"]
    return logits, action.astype(config["dtype"]), last


def gaussian(config, w, mean, rng):
    log_std, low, high = np.broadcast_to(w["log_std"], mean.shape), w["low"], w["high"]
    raw = mean if rng is None else mean + np.exp(log_std) * rng.standard_normal(mean.shape, np.float32)
    action = low + (high - low) * (0.5 * np.tanh(raw) + 0.5) if config["squash"] else raw.astype(low.dtype)
    return np.concatenate([mean, log_std], -1), np.clip(action, low, high), raw


def softplus(config, w, head, rng):
    mean, x = np.split(head, 2, -1)
    x = np.logaddexp(np.float32(0), x + np.float32(config["softplus_shift"]))
    log_std = np.log(np.maximum(x, np.float32(config["smallest"]))) / np.float32(config["power"])
    return gaussian(config, {**w, "log_std": log_std}, mean, rng)


features, core, choose = vector, feedforward, categorical


class Policy:
    def __init__(self, folder=Path(__file__).parent, seed=0):
        self.config = json.loads((Path(folder) / "export.json").read_text())["policy"]
        self.rng, data = np.random.default_rng(seed), (Path(folder) / "weights.safetensors").read_bytes()
        start, kinds = 8 + int.from_bytes(data[:8], "little"), {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
        self.weights = {
            name: np.frombuffer(data[start:][slice(*x["data_offsets"])], kinds[x["dtype"]]).reshape(x["shape"])
            for name, x in json.loads(data[8:start]).items()
        }

    def predict(self, observation, state=None, deterministic=True, *, reward=0.0):
        """Return actions for env.step, and the next state; `parameters` are then those of the actions' distribution."""
        config, w, x = self.config, self.weights, np.asarray(observation)
        x = x[None] if (single := x.ndim == len(config["shape"])) else x
        state, reward = (np.zeros((len(x), config["state"]), np.float32), 0) if state is None else (state, reward)
        memory, last = np.split(state, [config["memory"]], -1)
        x = features(config, w, x)
        if last.size:
            x = np.concatenate([x, last, np.full((1, len(x)), np.clip(reward, -1, 1), np.float32).T], -1)
        head, memory = core(config, w, x, memory)
        self.parameters, action, last = choose(config, w, head, None if deterministic else self.rng)
        state = np.concatenate([memory, last[:, : config["state"] - config["memory"]]], -1)
        return action[0] if single else action, state
