"""`pbtrl export` and `Run.export`: files, replacement, bad input, and the use of a bundle without pbtrl."""

from __future__ import annotations

import builtins
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import onnxruntime
import pytest
import yaml

from pbtrl import api
from pbtrl.errors import RunError
from pbtrl.export import export, onnx_graph
from pbtrl.storage.run_directory import RunDirectory
from tests.command import CART, Command, contents

PLAY = """
import sys
sys.modules["pbtrl"] = sys.modules["torch"] = sys.modules["safetensors"] = None  # imports of them fail
sys.path.insert(0, sys.argv[1])
from policy import Policy
import gymnasium
env, policy, state, total, over = gymnasium.make("CartPole-v1"), Policy(), None, 0.0, False
observation, _ = env.reset(seed=int(sys.argv[2]))
while not over:
    action, state = policy.predict(observation, state)
    observation, reward, terminated, truncated, _ = env.step(action)
    total, over = total + reward, terminated or truncated
print(total)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished run."""
    where = tmp_path_factory.mktemp("runs")
    (where / "cart.yaml").write_text(CART)
    return api.train(where / "cart.yaml", runs=where, name="cart").path


@pytest.fixture
def run(trained: Path, tmp_path: Path, pbtrl: Command) -> api.Run:
    shutil.copytree(trained, "runs/cart")
    return api.Run("runs/cart")


def said(pbtrl: Command, *argv: object) -> str:
    result = pbtrl(*argv)
    assert result.code == 0, result.err
    return result.out


def refused(pbtrl: Command, *argv: object, code: int = 2) -> str:
    result = pbtrl(*argv)
    assert (result.code, result.out) == (code, "")
    assert len(result.err.splitlines()) == 1
    return result.err


def test_bundle_plays_where_pbtrl_is_not_importable(pbtrl: Command, run: api.Run, tmp_path: Path) -> None:
    out = said(pbtrl, "export", "cart", "--out", "taken")
    assert out.startswith("taken\n")
    assert "largest difference from pbtrl's policy on 64 observations: " in out
    assert sorted(contents(Path("taken"))) == ["config.yaml", "export.json", "policy.py", "weights.safetensors"]
    scores = run.evaluate(episodes=1, seed=7, deterministic=True)
    assert isinstance(scores, dict)
    code = [sys.executable, "-I", "-c", PLAY, str(tmp_path / "taken"), str(scores["seeds"][0])]
    played = subprocess.run(code, cwd="/", capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stderr
    assert float(played.stdout) == scores["return_mean"]


def test_bundle_says_what_it_is(run: api.Run) -> None:
    folder = run.export("m01")
    assert folder == Path("runs/cart/export/m01-bundle")
    info = json.loads((folder / "export.json").read_text())
    member = run.members["m01"]
    assert (info["snapshot"], info["env_steps"], info["env"]) == (member.snapshot, member.step, "CartPole-v1")
    assert info["files"] == sorted(contents(folder))
    assert info["action_space"] == {"type": "Discrete", "n": 2, "start": 0}
    assert 0 <= info["largest_difference"] < 1e-5
    assert api.train(folder / "config.yaml", name="again").config == run.config
    run.evaluate("m01", episodes=2)
    info = json.loads((run.export("m01") / "export.json").read_text())
    assert info["score"]["episodes"] == 2 or member.snapshot == (run.best or {})["snapshot"]
    RunDirectory(run.path).check_links()


def test_score_is_that_of_the_best_or_the_newest(run: api.Run) -> None:
    best = (run.best or {})["member"]
    other = next(m for m in run.members if m != best)
    for member in (other, best):
        for episodes in (2, 3):
            run.evaluate(member, episodes=episodes, seed=episodes)
    scores = [json.loads((run.export(m) / "export.json").read_text())["score"] for m in (other, best)]
    assert (scores[0]["episodes"], scores[0]["member"]) == (3, other)
    assert scores[1] == (run.best or {})["evaluation"]


def test_graph_of_a_run(pbtrl: Command, run: api.Run) -> None:
    info = json.loads(said(pbtrl, "export", "cart", "--format", "onnx", "--json"))
    session = onnxruntime.InferenceSession(f"{info['folder']}/policy.onnx", providers=["CPUExecutionProvider"])
    assert info["inputs"] == {"observation": ["tensor(float)", "batch", 4]}
    policy = run.load_policy()
    observation, _ = gymnasium.make("CartPole-v1").reset(seed=3)
    actions, logits = session.run(["action", "distribution"], {"observation": observation[None]})
    assert actions[0] == policy.predict(observation)[0]
    np.testing.assert_allclose(logits[0], policy.distribution(observation), atol=1e-5)


def test_model_card(pbtrl: Command, run: api.Run) -> None:
    video = Path("runs/cart/eval") / f"20000101-000000-0-{(run.best or {})['snapshot'].replace('/', '-')}.gif"
    video.parent.mkdir(exist_ok=True)
    video.write_bytes(b"GIF")
    out = said(pbtrl, "export", "cart", "--format", "hub")
    folder = Path(out.splitlines()[0])
    assert f"hf upload USER/cart-{(run.best or {})['member']} {folder}" in out
    assert {"README.md", "lineage.png", "replay.gif", "policy.py"} <= {p.name for p in folder.iterdir()}
    _, header, card = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(header)
    assert metadata["tags"][-2:] == ["impala", "CartPole-v1"]
    score = (run.best or {})["evaluation"]
    (metric,) = metadata["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == f"{score['return_mean']:.2f} +/- {score['return_std']:.2f}"
    assert f"**Mean return {score['return_mean']:.1f}**, 95 % interval" in card
    assert card.count("| 0 |") == 1
    for point in run.schedule():
        assert f"| {point['at']:,} | " in card
    assert "learning_rate: {prior: log_uniform" in card
    _, usage, _ = (folder / "policy.py").read_text().split("\n\n", 2)
    assert usage.split('"""')[0] in card


def test_card_names_the_metric(run: api.Run) -> None:
    best = json.loads((run.path / "best.json").read_text())
    best["evaluation"] |= {"metric": "<success>", "return_mean": 0.75, "return_std": 0.5, "ci95": None, "episodes": 4}
    (run.path / "best.json").write_text(json.dumps(best))
    _, header, card = (run.export(format="hub") / "README.md").read_text().split("---\n", 2)
    (metric,) = yaml.safe_load(header)["model-index"][0]["results"][0]["metrics"]
    assert (metric["type"], metric["name"], metric["value"]) == ("<success>", "<success>", "0.75 +/- 0.50")
    assert "**Mean &lt;success&gt; 0.750**, over 4 fresh episodes with sampled actions." in card


def test_card_of_one_episode_has_no_spread(run: api.Run) -> None:
    best = json.loads((run.path / "best.json").read_text())
    best["evaluation"] |= {"return_mean": 9.0, "return_std": None, "ci95": None, "episodes": 1}
    (run.path / "best.json").write_text(json.dumps(best))
    assert ", value: '9.00', " in (run.export(format="hub") / "README.md").read_text().replace("\n", " ")


def test_card_counts_members_that_came_later(run: api.Run) -> None:
    path = run.path / "journal.jsonl"
    header, *lines = path.read_text().splitlines()
    decision = json.loads(lines[0])
    later = f"m{len(run.members):02d}"
    assignment = {**decision["assignments"][0], "id": f"{later}/000000", "member": later}
    path.write_text("\n".join([header, *lines, json.dumps({**decision, "assignments": [assignment]}), ""]))
    assert f"of a population of {len(run.members)}, trained" in (run.export(format="hub") / "README.md").read_text()


def test_start_of_an_evaluation_is_no_copy(run: api.Run) -> None:
    receiver = run.lineage()[0]["member"]
    path = run.path / "journal.jsonl"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(header), "roles": {receiver: "evaluator"}}), *lines, ""]))
    count = sum(copy["kind"] == "exploit" for copy in run.lineage())
    assert count < len(run.lineage())
    assert f"; {count} copies between members" in (run.export(format="hub") / "README.md").read_text()


def test_unscored_member_has_a_card(run: api.Run) -> None:
    other = next(m for m in run.members if m != (run.best or {})["member"])
    card = (run.export(other, format="hub") / "README.md").read_text()
    assert f"It was not scored: `pbtrl eval cart --member {other}` does it." in card
    assert "model-index" not in card


def test_own_export_is_replaced_and_nothing_else(pbtrl: Command, run: api.Run) -> None:
    out = Path("out")
    out.mkdir()
    said(pbtrl, "export", "cart", "--out", out)
    (out / "__pycache__").mkdir()
    said(pbtrl, "export", "cart", "--out", out, "--format", "onnx")
    assert sorted(contents(out)) == ["config.yaml", "export.json", "policy.onnx"]
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    assert "out holds 'notes.txt', which is not of the export" in refused(pbtrl, "export", "cart", "--out", out)
    assert contents(out) == before
    other, file, link = Path("other"), Path("file"), Path("link")
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    file.write_text("mine")
    link.symlink_to("nowhere")
    assert "other exists and is no export of pbtrl" in refused(pbtrl, "export", "cart", "--out", other)
    (other / "export.json").write_text("[]")
    assert "other exists and is no export of pbtrl" in refused(pbtrl, "export", "cart", "--out", other)
    assert "file exists and is no folder" in refused(pbtrl, "export", "cart", "--out", file)
    assert "link exists and is no" in refused(pbtrl, "export", "cart", "--out", link)
    assert sorted(p.name for p in other.iterdir()) == ["export.json", "thesis.tex"]
    assert "cannot write file/in" in refused(pbtrl, "export", "cart", "--out", "file/in")


def test_bad_input(pbtrl: Command, run: api.Run) -> None:
    assert "no member 'm9'" in refused(pbtrl, "export", "cart", "--member", "m9")
    assert "one member" in refused(pbtrl, "export", "cart", "--member", "all")
    assert "invalid choice: 'pickle'" in pbtrl("export", "cart", "--format", "pickle").err
    with pytest.raises(RunError, match=r"unknown format 'pickle'. Known: bundle, onnx, hub"):
        run.export(format="pickle")
    (run.path / "best.json").unlink()
    assert "has no best member yet" in refused(pbtrl, "export", "cart")
    said(pbtrl, "train", "toy_quadratic", "--progress", "none")
    line = refused(pbtrl, "export", "toy_quadratic")
    assert "trains quadratic, which has no policy; its weights are runs/toy_quadratic/members/" in line
    assert not Path("runs/cart/export").exists()


def test_damaged_snapshot_is_not_exported(pbtrl: Command, run: api.Run) -> None:
    snapshot = run.path / "members/m01/snapshots" / str(run.members["m01"].snapshot).split("/")[1]
    data = bytearray((snapshot / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (snapshot / "tensors.safetensors").write_bytes(data)
    assert "is damaged" in refused(pbtrl, "export", "cart", "--member", "m01", "--out", "a/b", code=4)
    assert not Path("a").exists()


@pytest.mark.parametrize("format", ["bundle", pytest.param("onnx", marks=pytest.mark.slow)])
def test_different_policy_is_refused_and_leaves_nothing(
    pbtrl: Command, run: api.Run, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    run.export(format=format, out="kept")
    before = contents(Path("kept"))
    real = export.load_policy

    def other(*args: Any, **options: Any) -> Any:
        loaded = real(*args, **options)
        predict = loaded.policy.distribution
        monkeypatch.setattr(loaded.policy, "distribution", lambda *a, **k: predict(*a, **k) + 2e-5)
        return loaded

    monkeypatch.setattr(export, "load_policy", other)
    line = refused(pbtrl, "export", "cart", "--format", format, "--out", "a/b")
    assert "differs from pbtrl's by 2.0e-05 on 64 observations, more than 1e-05; nothing was exported" in line
    assert not Path("a").exists()
    refused(pbtrl, "export", "cart", "--format", format, "--out", "kept")
    assert contents(Path("kept")) == before
    assert not list(Path().glob(".*"))


def test_full_disk_leaves_nothing(pbtrl: Command, run: api.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_durably", full)
    assert "no space on the disk" in refused(pbtrl, "export", "cart", "--out", "a/b", code=75)
    assert not Path("a").exists()


def test_missing_package_is_named(pbtrl: Command, run: api.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("onnxruntime"):
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")
        return real(name, *args)

    monkeypatch.delitem(sys.modules, onnx_graph.__name__)
    monkeypatch.delattr("pbtrl.export.onnx_graph")
    monkeypatch.setattr(builtins, "__import__", without)
    line = refused(pbtrl, "export", "cart", "--format", "onnx")
    assert line == '--format onnx needs onnxruntime, which is not installed: pip install "pbtrl[onnx]"\n'
    assert not Path("runs/cart/export").exists()


def test_names_from_a_run_do_not_become_code_or_markup(pbtrl: Command, run: api.Run) -> None:
    path = run.path / "config.resolved.yaml"
    name = 'a"""\nimport os\nos.mkdir("boom")\n"""<script>|'
    path.write_text(path.read_text().replace("id: CartPole-v1", f"id: {json.dumps(name)}"))
    folder = run.export(format="hub")
    assert run.config.env
    assert run.config.env.id == name
    source = (folder / "policy.py").read_text()
    assert source.splitlines()[0].count('"""') == 1
    assert "import os" not in source.splitlines()
    assert not Path("boom").exists()
    header, card = (folder / "README.md").read_text().split("---\n")[1:3]
    assert yaml.safe_load(header)["tags"][-1] == name
    assert "# impala in a" in card
    assert "<script>" not in card
