"""The Python API: the same runs as the command line's, from a script or a notebook."""

from __future__ import annotations

import enum
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import pbtrl as package
from pbtrl import api
from pbtrl.core.member import Member
from pbtrl.core.records import Decision, ReportRecord, RunFinished
from pbtrl.errors import CallbackError, ConfigError, PbtrlError, RunError, TrainingError
from pbtrl.training import scoring
from pbtrl.training.callbacks import Callback
from tests.command import CART, ROOT, Command

TOY = {"trainable": {"name": "quadratic"}, "population": {"size": 2, "mode": "sync"},
       "execution": {"backend": "inline"}, "budget": {"env_steps_per_member": 40},
       "strategy": {"ready": {"slice_steps": 10}},
       "hparams": {h: {"prior": "uniform", "low": 0.0, "high": 1.0} for h in ("h0", "h1")}}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_disk: None) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cart.yaml").write_text(CART)


@pytest.fixture
def toy() -> api.Run:
    return api.train(TOY, name="toy")


# --- the package ---


def test_import_is_quick_and_needs_no_torch() -> None:
    code = "import sys, pbtrl; print([m for m in ('torch', 'numpy', 'pydantic', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_public_name_exists() -> None:
    assert sorted(package.__all__) == list(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_all_public_errors_have_one_base() -> None:
    errors = [getattr(package, name) for name in package.__all__ if name.endswith("Error")]
    assert len(errors) > 8
    assert all(issubclass(error, PbtrlError) for error in errors)


# --- training ---


def test_dictionary_trains_like_its_file(toy: api.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert toy.name == "toy"
    assert toy.status()["state"] == "finished"
    assert toy.config.population.size == 2
    best = toy.best
    assert best is not None
    assert best == json.loads(Path("runs/toy/best.json").read_text())
    assert capsys.readouterr() == ("", "")
    again = api.train("runs/toy/config.yaml", name="again", progress="none")
    assert _first(again).assignments == _first(toy).assignments
    assert {run.name for run in api.list_runs()} == {"toy", "again"}


def _first(run: api.Run) -> Decision:
    return next(r for r in run.journal if isinstance(r, Decision))


def test_progress_is_printed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    api.train(TOY, name="a", progress="plain")
    assert "best       m0" in capsys.readouterr().out
    api.train(TOY, name="b", progress="json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == "finish"


def test_evaluation_that_cannot_be_saved_is_returned(
    toy: api.Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in somebody else's run."""

    def fail(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(scoring, "save_evaluation", fail)
    assert toy.evaluate()["member"] == toy.best["member"]
    (warning,) = caplog.messages
    assert warning.startswith("results not saved in ")
    assert warning.endswith(": Permission denied")


def test_overrides_and_resume(toy: api.Run) -> None:
    assert api.resume("toy").status()["steps_budget"] == 80  # finished: nothing to do
    longer = api.resume("last", overrides=["budget.env_steps_per_member=60"])
    assert longer.status()["steps_budget"] == 120
    assert [type(r).__name__ for r in longer.journal].count("RunFinished") == 2
    seeded = api.train(TOY, overrides=["seed=5", "budget.env_steps_per_member=10"], name="toy", if_exists="suffix")
    assert (seeded.name, seeded.config.seed) == ("toy-2", 5)


def test_mistakes_are_raised_and_nothing_is_started() -> None:
    with pytest.raises(ConfigError, match=r"config:1:\d+: trainable\.name: unknown trainable 'cubic'"):
        api.train({"trainable": {"name": "cubic"}, "budget": {"env_steps_per_member": 1}})
    with pytest.raises(ConfigError, match=r"override 'population.sise=3': unknown key. Did you mean 'size'\?"):
        api.train(TOY, overrides=["population.sise=3"])
    with pytest.raises(RunError, match="there are no runs"):
        api.load_run()
    assert not Path("runs").exists()


def test_taken_run_name(toy: api.Run) -> None:
    with pytest.raises(RunError, match=r"exists \(finished\)"):
        api.train(TOY, name="toy")


def test_failed_run_raises_and_can_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no more")

    with monkeypatch.context() as inside:
        inside.setattr(scoring, "evaluate", fail)
        with pytest.raises(TrainingError, match="the final evaluation failed: RuntimeError: no more"):
            api.train(TOY, name="toy")
    assert api.resume("toy").status()["state"] == "finished"


def test_signal_handlers_are_restored(toy: api.Run) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    api.train(TOY, name="a")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_ctrl_c_stops_a_run_that_can_be_resumed() -> None:
    class Interrupt(Callback):
        def on_report(self, report: ReportRecord) -> None:
            if report.report.assignment == "m00/000001":  # a second signal would end this process
                signal.raise_signal(signal.SIGINT)

    run = api.train(TOY, name="a", callbacks=[Interrupt()])
    assert run.status()["state"] == "stopped"
    assert api.resume("a").status()["state"] == "finished"


def test_train_in_a_thread() -> None:
    result: list[api.Run] = []
    thread = threading.Thread(target=lambda: result.append(api.train(TOY, name="a")))
    thread.start()
    thread.join()
    assert result[0].status()["state"] == "finished"


# --- callbacks ---


class Recorder(Callback):
    def __init__(self, stop_after: int | None = None) -> None:
        self.decisions: list[Decision] = []
        self.reports: list[ReportRecord] = []
        self.finished: list[Any] = []
        self.stop_after = stop_after

    def on_decision(self, decision: Decision) -> None:
        self.decisions.append(decision)

    def on_report(self, report: ReportRecord) -> bool | None:
        self.reports.append(report)
        return len(self.reports) == self.stop_after

    def on_finish(self, best: dict[str, Any] | None) -> None:
        self.finished.append(best)


def test_callbacks_get_the_journal_lines() -> None:
    recorder = Recorder()
    run = api.train(TOY, name="a", callbacks=[recorder, Callback()])
    assert recorder.decisions == [r for r in run.journal if isinstance(r, Decision)]
    assert recorder.reports == [r for r in run.journal if isinstance(r, ReportRecord)]
    assert isinstance(run.journal[-1], RunFinished)
    assert recorder.finished == [run.best]


def test_callback_can_stop_the_run() -> None:
    recorder = Recorder(stop_after=3)
    run = api.train(TOY, name="a", callbacks=[recorder])
    assert run.status()["state"] == "stopped"
    assert not recorder.finished
    assert run.best is None
    again = Recorder()
    assert api.resume("a", callbacks=[again]).status()["state"] == "finished"
    assert len(recorder.reports) + len(again.reports) == 8


def test_callback_error_ends_the_run_cleanly() -> None:
    class Broken(Callback):
        def on_report(self, report: ReportRecord) -> None:
            raise KeyError("mine")

    with pytest.raises(CallbackError, match=r"Broken\.on_report raised KeyError: 'mine'") as caught:
        api.train(TOY, name="a", callbacks=[Broken()])
    assert isinstance(caught.value.__cause__, KeyError)
    assert api.load_run("a").status()["state"] == "crashed"
    assert api.resume("a").status()["state"] == "finished"


# --- a run ---


def test_run_attributes(toy: api.Run, pbtrl: Command) -> None:
    assert repr(toy) == "Run('runs/toy')"
    assert all(isinstance(m, Member) for m in toy.members.values())
    assert toy.lineage() == pbtrl("lineage", "toy", "--json").json["copies"]
    rows = toy.fitness()
    rows = rows if isinstance(rows, list) else rows.to_dict("records")
    assert [(r["member"], r["env_steps"]) for r in rows[:2]] == [("m00", 10), ("m01", 10)]
    assert rows[-1]["fitness"] == toy.members[rows[-1]["member"]].fitness
    assert {"elapsed", "generation", "hparams/h0", "hparams/h1"} <= rows[0].keys()


@pytest.mark.parametrize("kind", ["training", "lineage", "timeline", "speed"])
def test_plots_are_figures(toy: api.Run, kind: Any) -> None:
    figure = toy.plot(kind)
    assert figure.axes
    assert vars(figure)["_repr_png_"]().startswith(b"\x89PNG")  # as a notebook shows it


def test_schedule_is_a_setting_of_its_replay(toy: api.Run, pbtrl: Command) -> None:
    points = toy.schedule()
    assert points == pbtrl("schedule", "toy", "--format", "json").json["schedule"]
    assert toy.schedule("m01") == pbtrl("schedule", "toy", "--member", "m01", "--format", "json").json["schedule"]
    again = api.train({**TOY, "strategy": {"name": "schedule_replay", "schedule": points}}, name="again")
    assert again.schedule() == points
    with pytest.raises(RunError, match="no member 'm09'"):
        toy.schedule("m09")


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("plot", {"kind": "curve"}, "kind must be one of training, .*, not 'curve'"),
        ("evaluate", {"episodes": 0}, "episodes must be a whole number from 1 to 1,000,000, not 0"),
        ("evaluate", {"episodes": 1.5}, "episodes must be a whole number from 1 to 1,000,000, not 1.5"),
        ("evaluate", {"episodes": True}, "episodes must be a whole number"),
        ("evaluate", {"seed": -1}, "seed must be a whole number from 0 to "),
        ("evaluate", {"seed": "a"}, "seed must be a whole number from 0 to .*, not 'a'"),
        ("evaluate", {"video": -1}, "video must be a whole number from 0 to 16, not -1"),
        ("load_policy", {"seed": None}, "seed must be a whole number"),
    ],
)
def test_invalid_argument_is_one_error(toy: api.Run, function: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=f"^{message}"):
        getattr(toy, function)(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"if_exists": "replace"}, "if_exists must be one of error, resume, overwrite, suffix, not 'replace'"),
        ({"progress": "verbose"}, "progress must be one of auto, live, plain, json, none, not 'verbose'"),
        ({"progress": None}, "progress must be one of .*, not None"),
        ({"overrides": "seed=2"}, "overrides must be a list of strings, not 'seed=2'"),
        ({"overrides": [2]}, "overrides must be a list of strings"),
        ({"callbacks": [print]}, "callbacks must be instances of subclasses of pbtrl.Callback, not <built-in function"),
    ],
)
def test_invalid_argument_of_train_starts_nothing(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=f"^{message}"):
        api.train("toy_quadratic", **arguments)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: api.train(None), ConfigError, "a config is a YAML file, .* or a dictionary, not null"),
        (lambda: api.train({**TOY, "trainable": {"name": len}}), ConfigError, "config: trainable.name: must be text"),
        (lambda: api.train({**TOY, "init_from": {1}}), ConfigError, r"config: init_from: must be text, .* not \{1\}"),
        (lambda: api.train(TOY, runs=3), RunError, "runs must be a path, not 3"),
        (lambda: api.sweep(5), ConfigError, "a config is a YAML file"),
        (lambda: api.sweep(TOY, grid={"seed": [len]}), ConfigError, "grid: seed: must be text"),
        (lambda: api.sweep("toy_quadratic", name=5), RunError, "name must be a string, not 5"),  # type: ignore[arg-type]
        (lambda: api.compare("a", metric=3), RunError, "metric must be a string, not 3"),  # type: ignore[arg-type]
        (lambda: api.compare(5), RunError, "selected must be runs, or a folder of runs, not 5"),
        (lambda: api.compare(["a", None]), RunError, "selected must be runs, .*, not None"),
    ],
)  # fmt: skip
def test_argument_of_another_type_is_one_error(call: Any, error: type[PbtrlError], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()
    assert not Path("runs").exists()


def test_values_of_numpy_and_paths_are_settings() -> None:
    class Word(enum.StrEnum):
        NAME = "quadratic"

    hparams = {h: {"prior": "uniform", "low": np.float32(0), "high": np.float64(1)} for h in ("h0", "h1")}
    settings = {"seed": np.int64(3), "trainable": {"name": Word.NAME}, "hparams": hparams}
    run = api.train({**TOY, **settings, "init_from": api.train(TOY, name="first").path}, name="a")
    assert run.config.seed == 3
    assert run.config.to_dict()["init_from"] == "runs/first"
    with pytest.raises(RunError, match="runs/a is finished"):  # so the value is fine
        run.set({"hparams.h0.high": np.float32(0.5)})
    with pytest.raises(RunError, match=r"hparams\.h0\.high: must be text, a number"):
        run.set({"hparams.h0.high": len})
    with pytest.raises(RunError, match=r"hparams\.h0: keys must be text, not 1"):
        run.set({"hparams.h0": {1: 2}})
    wrong: Any = 5
    with pytest.raises(RunError, match="settings must map keys to values, not 5"):
        run.set(wrong)
    with pytest.raises(PbtrlError, match="retire"):
        run.set(retire=wrong)
    with pytest.raises(ConfigError, match="keys must be text, not 1"):
        api.train({**TOY, "trainable": {1: 2}})
    with pytest.raises(ConfigError, match="keys must be text, not 1"):
        api.sweep(TOY, grid={"strategy": [{1: 2}]})
    assert api.train({**TOY, np.str_("seed"): 4}, name="b").config.seed == 4


def test_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert api.train(TOY, runs="~/mine", name="a").path == tmp_path / "mine/a"
    assert [run.name for run in api.list_runs("~/mine")] == ["a"]
    assert api.Run("~/mine/a").members == api.load_run("a", runs="~/mine").members
    assert api.compare("a", runs="~/mine").save("~/page.html") == tmp_path / "page.html"


def test_config_is_read_again(toy: api.Run) -> None:
    assert toy.config.budget.env_steps_per_member == 40
    api.resume("toy", overrides=["budget.env_steps_per_member=60"])
    assert toy.config.budget.env_steps_per_member == 60


def test_evaluation_leaves_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train_cart()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run.evaluate(episodes=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def settings_of_torch() -> tuple[int, int, bool]:
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    return torch.get_num_threads(), torch.get_deterministic_debug_mode(), fills


def test_training_leaves_the_settings_of_torch() -> None:
    torch.set_num_threads(3)
    train_cart("execution.backend=inline", "population.mode=sync")
    assert settings_of_torch() == (3, 0, True)


def test_torch_trainables_leave_the_threads_of_torch() -> None:
    torch.set_num_threads(3)
    small = ["budget.env_steps_per_member=1", "population.size=1", "strategy.ready.slice_steps=1"]
    run = api.train("classifier", overrides=[*small, "execution.backend=inline"])
    assert torch.get_num_threads() == 3
    run.evaluate()
    assert torch.get_num_threads() == 3


def test_numpy_integers_are_whole_numbers(toy: api.Run) -> None:
    toy.evaluate(seed=np.uint8(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("read", [api.Run.evaluate, api.Run.schedule])
def test_member_of_another_type_is_one_error(toy: api.Run, read: Any) -> None:
    with pytest.raises(RunError, match=r"no member \['m00'\] in "):
        read(toy, ["m00"])


def test_evaluation_is_kept(toy: api.Run) -> None:
    best = toy.evaluate()
    assert isinstance(best, dict)
    assert toy.best is not None
    assert best["return_mean"] == toy.best["evaluation"]["return_mean"]
    both = toy.evaluate("all")
    assert isinstance(both, list)
    assert [e["member"] for e in both] == ["m00", "m01"]
    assert len(list(Path("runs/toy/eval").iterdir())) == 2


def test_trainable_has_no_policy(toy: api.Run) -> None:
    with pytest.raises(RunError, match="trains quadratic, which has no policy"):
        toy.load_policy()


# --- policies ---


def train_cart(*overrides: str) -> api.Run:
    return api.train("cart.yaml", overrides=["population.size=2", *overrides], name="cart")


def play(policy: Any, env: gymnasium.Env[Any, Any], seed: int, **options: Any) -> float:
    observation, _ = env.reset(seed=seed)
    state, total, over = None, 0.0, False
    while not over:
        action, state = policy.predict(observation, state, **options)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


def test_policy_equals_evaluation() -> None:
    run = train_cart()
    policy = run.load_policy()
    env = gymnasium.make("CartPole-v1")
    result = run.evaluate(episodes=1, seed=7, deterministic=True)
    assert isinstance(result, dict)
    assert play(policy, env, result["seeds"][0]) == result["return_mean"]


@pytest.mark.parametrize("settings", ["agent={core: lstm, core_units: 8}", "agent={hidden: [8]}"])
def test_batch_equals_single_observations(settings: str) -> None:
    policy = train_cart(settings).load_policy("m01")
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(4, 3, 4)).astype(np.float32)
    state, states = None, [None] * 3
    for batch in batches:
        actions, state = policy.predict(batch, state)
        assert actions.shape == (3,)
        for i in range(3):
            action, states[i] = policy.predict(batch[i], states[i])  # type: ignore[call-overload]
            assert action == actions[i]


def test_samples_follow_the_seed() -> None:
    run, observation = train_cart(), np.zeros((64, 4), np.float32)
    first, second, other = (run.load_policy(seed=s).predict(observation, deterministic=False)[0] for s in (1, 1, 2))
    assert (first == second).all()
    assert (first != other).any()
    assert len(set(run.load_policy().predict(observation)[0].tolist())) == 1


def test_policy_needs_no_env(monkeypatch: pytest.MonkeyPatch) -> None:
    run = train_cart()
    monkeypatch.setattr("pbtrl.envs.make", None)
    monkeypatch.setattr("pbtrl.envs.spaces", None)
    action, _ = run.load_policy().predict(np.zeros(4))
    assert action in (0, 1)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 2, 4), ()])
def test_observation_of_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"an observation has shape \(4,\)"):
        train_cart().load_policy().predict(np.zeros(shape))


def test_state_of_another_batch_size() -> None:
    policy = train_cart().load_policy()
    _, state = policy.predict(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="the state is of 2 observations, not 3"):
        policy.predict(np.zeros((3, 4)), state)


def test_actions_are_in_the_envs_space() -> None:
    """Within bounds, whatever the policy's arithmetic gives."""
    overrides = ["env={id: Pendulum-v1, num_envs: 2, backend: gymnasium}", "agent.name=a3c"]
    run = train_cart(*overrides)
    policy = run.load_policy("m00")
    actions, _ = policy.predict(np.full((50, 3), 100.0), deterministic=False)
    assert actions.shape == (50, 1)
    assert policy.action_space.contains(actions[0])
    assert (np.abs(actions) <= 2.0).all()


def test_run_without_recorded_spaces_makes_the_env() -> None:
    """As of earlier versions."""
    run = train_cart()
    path = Path("runs/cart/journal.jsonl")
    first, _, rest = path.read_text().partition("\n")
    header = json.loads(first)
    del header["spaces"]
    path.write_text(json.dumps(header) + "\n" + rest)
    assert run.load_policy().predict(np.zeros(4))[0] in (0, 1)
