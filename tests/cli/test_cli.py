"""Every command as a user types it: its output, its JSON, and its answers to bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pbtrl.storage import best_member
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.training import scoring
from tests.command import CART, ROOT, Command, contents, journal, spawn

COMMANDS = [
    "train", "resume", "eval", "status", "list", "verify", "lineage", "schedule", "replay", "tb", "bench", "doctor",
    "config", "export",
]  # fmt: skip
MEMBER = {
    "id", "env_steps", "frames", "fitness", "fitness_before_copy", "generation", "skipped_updates", "parent",
    "hyperparameters", "at_bound", "role", "state", "evaluates",
}  # fmt: skip
SCORES = {
    "member", "agent", "snapshot", "env_steps", "episodes", "return_mean", "return_std", "ci95", "return_min",
    "return_max", "seeds",
}  # fmt: skip


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(pbtrl: Command, command: str):
    result = pbtrl(command, "--help")
    assert result.code == 0
    assert f"usage: pbtrl {command}" in result.out
    overview = pbtrl("--help").out
    assert f"\n    {command} " in overview
    assert "pbtrl train quickstart" in overview


def test_missing_command_shows_help_and_wrong_one_choices(pbtrl: Command):
    assert pbtrl().code == 2
    assert "first steps" in pbtrl().out
    assert "choose from 'train', 'resume'" in pbtrl("trian").err


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["sweep", "toy_quadratic", "--seed", "7"], "--seed 7. Did you mean '--seeds'?"),
        (["train", "toy_quadratic", "--over"], "--over. Did you mean '--overwrite'?"),
        (["train", "toy_quadratic", "--dry-run", "population.size"], "population.size. Write overrides as a.b=value"),
        (["status", "last", "--zzz"], "--zzz"),
    ],
)
def test_unknown_arguments_have_a_hint(pbtrl: Command, argv: list[str], hint: str):
    """Options have no abbreviations: `--over` could be one of a destructive option."""
    result = pbtrl(*argv)
    assert result.code == 2
    assert result.err.endswith(f"pbtrl {argv[0]}: error: unrecognized arguments: {hint}\n")


def test_quick_commands_import_no_large_library():
    """0.5 s for --help and for config errors, of which pydantic takes 0.3; torch alone would take three seconds."""
    code = (
        "import sys; from pbtrl.cli import main as cli\n"
        "for argv in (['--help'], ['train', 'quickstart', 'seeed=1'], ['list', '--runs', 'nowhere']):\n"
        "    try: cli.main(argv)\n"
        "    except SystemExit: pass\n"
        "large = {'torch', 'gymnasium', 'envpool', 'scipy', 'tensorboard', 'ale_py', 'mujoco'} & sys.modules.keys()\n"
        "sys.exit(' '.join(large) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_unknown_env_is_reported_before_torch_is_imported():
    code = (
        "import sys; from pbtrl.cli import main as cli\n"
        "assert cli.main(['train', 'quickstart', 'env.id=HalfCheetah-v9', '--dry-run']) == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "nearest: HalfCheetah-v5" in result.stderr


# Bad input: one line, exit code 2, nothing begun


BAD = {
    "an unknown env": (["env.id=CartPol-v1"], r"override .*: CartPol-v1: no such env; nearest: CartPole-v1"),
    "an unknown game": (["env.id=ALE/Pon-v5"], r"override .*: ALE/Pon-v5: no such env; nearest: ALE/Pong-v5"),
    "a module that is not there": (["env.id=no.such:make"], r"override .*: no.such:make: cannot import no.such: .*"),
    "an env that cannot be made": (["env.kwargs.x=1"], r"cart.yaml:.*: env.id: CartPole-v1: could not be made: .*"),
    "an unknown agent": (["agent.name=impla"], r"override 'agent.name=impla': unknown agent .* 'impala'\?"),
    "an unknown key": (["population.sise=3"], r"override 'population.sise=3': unknown key. Did you mean 'size'\?"),
    "an empty prior": (["hparams.unroll_length.low=20"], r"override .*: needs low < high, not 20 and 10"),
    "a log prior from zero": (["hparams.learning_rate.low=0"], r"override .*: log_uniform needs low > 0"),
    "too many references": (["population.reference_members=5"], r"override .*: .*_members 5 is more than size 4"),
    "a network for other observations": (["agent.network=nature"], r"override .*: nature cannot read .*: use mlp"),
    "actions that no agent takes": (["env.id=tests.faulty_envs:tuples"], r"override .*: tests.faulty_envs:tuples: .*"),
    "a backend for other envs": (["env.backend=envpool", "env.id=ALE/Pong-v5"], r"override .*: envpool cannot run .*"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_starts_nothing(pbtrl: Command, what: str):
    overrides, line = BAD[what]
    result = pbtrl("train", "cart.yaml", "--name", "x", *overrides)
    assert result.code == 2
    assert result.out == ""
    lines = result.err.splitlines()
    assert lines[1:] == ["1 error. Nothing was started."]
    assert re.fullmatch(line, lines[0]), lines[0]
    assert not Path("runs").exists()


def test_all_mistakes_are_reported_with_positions(pbtrl: Command):
    text = Path("cart.yaml").read_text().replace("size: 4", "sise: 4")
    Path("cart.yaml").write_text(text)
    result = pbtrl("train", "cart.yaml", "seed=-1")
    assert result.err.splitlines() == [
        "cart.yaml:3:14: population.sise: unknown key. Did you mean 'size'?",
        "override 'seed=-1': must be >= 0, not -1",
        "2 errors. Nothing was started.",
    ]


@pytest.mark.parametrize("when", ["__init__", "close"])
def test_env_that_hangs_when_made_is_reported_before_start(pbtrl: Command, when: str):
    Path("slow.py").write_text(
        "import gymnasium, time\n"
        "class Slow(gymnasium.Wrapper):\n"
        "    def __init__(self): super().__init__(gymnasium.make('CartPole-v1'))\n"
        f"def make(): return Slow()\n"
        f"inner = Slow.{when}\n"
        f"def slowly(self): inner(self); time.sleep(1000)\n"
        f"Slow.{when} = slowly\n"
    )
    before = signal.getsignal(signal.SIGALRM)
    result = pbtrl("train", "cart.yaml", "--name", "a", "env.id=slow:make", "failure.env_step_timeout=0.5s")
    del sys.modules["slow"]
    assert result.code == 2
    why = "slow:make: a first look at one env took longer than failure.env_step_timeout (0.5 s)"
    assert why in result.err
    assert result.err.endswith("1 error. Nothing was started.\n")
    assert not Path("runs").exists()
    assert signal.getsignal(signal.SIGALRM) == before


def test_unfit_agent_is_reported_with_position(pbtrl: Command):
    Path("pong.yaml").write_text("env: {id: ALE/Pong-v5}\nagent:\n  network: mlp\nbudget: {total_steps: 1000}\n")
    result = pbtrl("train", "pong.yaml")
    assert result.code == 2
    assert result.err.startswith("pong.yaml:3:12: agent.network: mlp cannot read observations that are images")


def test_missing_optional_package(pbtrl: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pbtrl.envs.pool", None)  # as where envpool cannot be imported
    result = pbtrl("train", "cart.yaml", "env.backend=envpool")
    assert (result.code, result.err) == (
        2,
        "override 'env.backend=envpool': the back end needs envpool, which is not installed: "
        'pip install "pbtrl[fast]"\n'
        "1 error. Nothing was started.\n",
    )
    assert "backend: gymnasium" in pbtrl("train", "cart.yaml", "env.backend=auto", "--dry-run").out
    assert not Path("runs").exists()


def test_unwritable_runs_directory(pbtrl: Command):
    Path("file").touch()
    result = pbtrl("train", "toy_quadratic", "--runs", "file")
    assert (result.code, result.err) == (2, "cannot write to file: not a directory\n")


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "x" * 65])
def test_run_names_stay_below_the_root(pbtrl: Command, name: str):
    result = pbtrl("train", "toy_quadratic", "--name", name)
    assert result.code == 2
    assert "is not a run name" in result.err
    assert not Path("runs").exists()


def test_taken_name_is_refused_and_run_unchanged(pbtrl: Command):
    assert pbtrl("train", "toy_quadratic").code == 0
    before = contents(Path("runs/toy_quadratic"))
    result = pbtrl("train", "toy_quadratic", "seed=2")
    assert result.code == 2
    ways = "continue it with `pbtrl resume toy_quadratic`, or start a new run with --suffix or --overwrite"
    assert result.err == f"runs/toy_quadratic exists (finished): {ways}\n"
    assert contents(Path("runs/toy_quadratic")) == before
    assert pbtrl("train", "toy_quadratic", "--suffix").code == 0
    assert Path("runs/toy_quadratic-2/best.json").exists()
    assert contents(Path("runs/toy_quadratic")) == before
    assert pbtrl("train", "toy_quadratic", "--overwrite", "seed=2").code == 0
    assert journal(Path("runs/toy_quadratic"))[0]["seed"] == 2


def test_dry_run_prints_resolved_config_and_starts_nothing(pbtrl: Command):
    result = pbtrl("train", "cart.yaml", "strategy.ready.slice_steps=250", "--dry-run")
    assert result.code == 0
    assert "slice_steps: 280" in result.out  # whole blocks of 4 envs x 10 steps
    assert not Path("runs").exists()


def test_dry_run_says_what_the_run_would(pbtrl: Command):
    overrides = ["strategy.name=random_search", "strategy.ready.slice_steps=250"]
    Path("cart.yaml").write_text(CART.replace("strategy: {", "strategy: {explore: {factors: [2, 0.5]}, "))
    dry = pbtrl("train", "cart.yaml", *overrides, "--name", "a", "--dry-run")
    real = pbtrl("train", "cart.yaml", *overrides, "--name", "a")
    assert (dry.code, real.code) == (0, 0)
    assert dry.err == real.err
    assert "warning: strategy.name=random_search does not use explore of cart.yaml\n" in dry.err
    assert "warning: a slice of 280 env steps" in dry.err
    for name, message in (("a", "runs/a exists (finished)"), ("x/y", "'x/y' is not a run name")):
        refused = pbtrl("train", "cart.yaml", "--name", name, "--dry-run")
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.startswith(message)
    assert pbtrl("train", "cart.yaml", "--name", "a", "--dry-run", "--if-exists", "resume").code == 0


def test_number_arguments_are_validated(pbtrl: Command):
    assert "must be a whole number from 1 to 1000000, not 0" in pbtrl("eval", "last", "--episodes", 0).err
    assert "must be a number of seconds between 0 and 86400, not x" in pbtrl("bench", "cart.yaml", "--seconds", "x").err


# The toy: what each command says of a finished run


def test_options_without_effect_are_refused(pbtrl: Command):
    assert pbtrl("train", "toy_quadratic").code == 0
    for option in (["--episodes", 30], ["--deterministic"]):
        refused = pbtrl("eval", "last", *option)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err == (
            "runs/toy_quadratic trains quadratic, which has no episodes and no actions: leave out such options\n"
        )
    for option in ("--json", "--decisions"):
        refused = pbtrl("verify", "last", "--digest", option)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.endswith(f"--digest prints nothing but the digest: leave out {option}\n")


def test_commands_on_a_finished_run(pbtrl: Command):
    trained = pbtrl("train", "toy_quadratic")
    assert (trained.code, trained.err) == (0, "")
    lines = trained.out.splitlines()
    assert lines[0].split() == ["run", "runs/toy_quadratic"]
    assert lines[-1] == "next       pbtrl tb toy_quadratic | pbtrl eval toy_quadratic | pbtrl report toy_quadratic"
    assert "400 / 400 steps (100 %)" in next(line for line in lines if " / 400 " in line)
    (best,) = [line for line in lines if line.startswith("best ")]
    assert "fitness 1.15" in best

    status = pbtrl("status", "last", "--json").json
    assert status["state"] == "finished"
    assert status["members"][0].keys() == MEMBER
    text = pbtrl("status", "toy_q").out
    assert text.startswith("toy_quadratic: finished, 400 of 400 steps (100 %), ")
    assert text.splitlines()[1].split() == ["member", "fitness", "gen", "steps", "h0", "h1"]

    (listed,) = pbtrl("list", "--json").json
    assert (listed["name"], listed["state"]) == ("toy_quadratic", "finished")
    assert "toy_quadratic  finished  1.15" in pbtrl("list").out

    copies = pbtrl("lineage", "last", "--json").json["copies"]
    asked = {
        "time", "env_steps", "member", "donor", "hyperparameters_before", "hyperparameters_after", "fitness_before",
        "fitness_after",
    }  # fmt: skip
    assert len(copies) == 19
    assert asked <= copies[0].keys()
    assert len(pbtrl("lineage", "last").out.splitlines()) == 1 + len(copies)

    points = pbtrl("schedule", "last", "--format", "json").json["schedule"]
    assert [point["at"] for point in points] == [0, 40, 50, 60, 110, 140, 180]
    assert len(pbtrl("schedule", "last", "--member", "m00", "--format", "csv").out.splitlines()) == 1 + 8
    assert pbtrl("schedule", "last").out.splitlines()[2] == "strategy:"
    assert (
        pbtrl("schedule", "last", "--member", "m02").err
        == "no member 'm02' in runs/toy_quadratic: there are m00, m01\n"
    )

    score = pbtrl("eval", "last", "--json").json
    assert score.keys() >= SCORES
    assert score["member"] == json.loads(Path("runs/toy_quadratic/best.json").read_text())["member"]
    everybody = pbtrl("eval", "last", "--member", "all", "--json").json
    assert [e["member"] for e in everybody] == ["m00", "m01"]
    (evaluated,) = Path("runs/toy_quadratic/eval").glob("*-0.json")
    assert json.loads(evaluated.read_text()) == [score]
    output = pbtrl("eval", "last", "--member", "m00").out.splitlines()
    assert output[0].split() == ["member", "snapshot", "fitness"]
    assert output[1].split()[0] == "m00"


def test_list_without_runs_suggests_train(pbtrl: Command):
    assert pbtrl("list").out == "no runs in runs; start one with: pbtrl train quickstart\n"
    assert pbtrl("list", "--json").json == []
    assert pbtrl("status", "last").err == "there are no runs in runs\n"


def test_run_elsewhere_is_suggested_with_name_and_root(pbtrl: Command, tmp_path: Path):
    result = pbtrl("train", "toy_quadratic", "--runs", tmp_path / "else")
    path = tmp_path / "else" / "toy_quadratic"
    assert (
        f"pbtrl status toy_quadratic --runs {path.parent} | pbtrl tb toy_quadratic --runs {path.parent};" in result.out
    )
    assert pbtrl("status", path).code == 0


def test_config_list_show_and_schema(pbtrl: Command):
    titles, *lines = pbtrl("config", "list").out.splitlines()
    trains = dict(line.split(maxsplit=1) for line in lines)
    assert titles.split() == ["config", "trains"]
    assert list(trains) == sorted(trains)
    assert trains["pong"] == "PPO on Pong, classic protocol"
    assert trains["toy_chebykin"] == "The greedy-schedule toy of Chebykin et al. 2025"
    for name in trains:
        assert "budget:" in pbtrl("config", "show", name).out
    assert "seed: 7" in pbtrl("config", "show", "toy_quadratic", "seed=7").out
    assert "population" in pbtrl("config", "schema").json["properties"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "show needs a config; `pbtrl config list` has the shipped ones"),
        (["list", "pong"], "list takes no config"),
        (["schema", "pong"], "schema takes no config"),
    ],
)
def test_config_refuses_what_it_would_ignore(pbtrl: Command, arguments: list[str], message: str):
    result = pbtrl("config", *arguments)
    assert result.code == 2
    assert result.err.endswith(f"pbtrl config: error: {message}\n")


def test_doctor(pbtrl: Command):
    result = pbtrl("doctor", "--json")
    assert {c["check"] for c in result.json} >= {
        "python",
        "packages",
        "cores",
        "memory",
        "MuJoCo",
        "Atari",
        "disk",
        "file system",
    }
    assert result.code == (0 if all(c["ok"] for c in result.json) else 3)
    assert not list(Path().glob(".pbtrl*"))


def test_doctor_examines_a_config(pbtrl: Command):
    result = pbtrl("doctor", "cartpole", "population.size=2", "execution.workers=2", "--json")
    checks = {c["check"]: c for c in result.json}
    assert checks["env"]["what"].startswith("CartPole-v1 with ")
    needed = re.search(r"2 workers need .*, (\d+) MiB each with members and envs", checks["memory"]["what"])
    assert needed
    assert 150 < int(needed[1]) < 2000


def test_doctor_checks_the_warm_start(pbtrl: Command):
    refused = pbtrl("doctor", "cart.yaml", "init_from=nope")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("override 'init_from=nope': no run 'nope' in runs")


def test_doctor_reports_a_failing_env_and_its_workers(pbtrl: Command):
    result = pbtrl("doctor", "cartpole", "env.id=tests.faulty_envs:Raising", "env.kwargs={after: 3}", "--json")
    checks = {c["check"]: c for c in result.json}
    assert result.code == 3
    assert not checks["env"]["ok"]
    why = r"env.id=tests.faulty_envs:Raising: step\(\) raised RuntimeError: no more \(env 0 of \d+, step 3\)"
    assert re.fullmatch(f"EnvError: {why}", checks["env"]["what"])
    assert re.fullmatch(f"ChildProcessError: a worker of this config: {why}", checks["memory"]["what"])


def test_json_progress(pbtrl: Command):
    result = pbtrl("train", "toy_quadratic", "--progress", "json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert {line["kind"] for line in lines} == {"copy", "progress", "finish"}
    assert lines[-1]["best"]["evaluation"].keys() >= SCORES
    silent = pbtrl("train", "toy_quadratic", "--progress", "none", "--overwrite")
    assert (silent.out, silent.err) == ("", "")


def test_snapshot_deleted_while_read_falls_back_to_newer(pbtrl: Command, monkeypatch):
    """As in a running run: by the time that the files are opened, the journal has moved on."""
    assert pbtrl("train", "toy_quadratic").code == 0
    real, (gone, *_) = (
        best_member.snapshots_to_evaluate,
        best_member.snapshots_to_evaluate(RunDirectory(Path("runs/toy_quadratic")), "m00"),
    )
    old = gone[:-1] + str((int(gone[-1]) + 1) % 10)
    answers = iter([[old]])
    monkeypatch.setattr(scoring, "snapshots_to_evaluate", lambda run, member: next(answers, None) or real(run, member))
    assert pbtrl("eval", "last", "--member", "m00", "--json").json["snapshot"] == gone
    monkeypatch.setattr(scoring, "snapshots_to_evaluate", lambda run, member: [old])
    assert pbtrl("eval", "last", "--member", "m00").code == 4


# What cannot be evaluated


def test_eval_without_a_best_member(pbtrl: Command):
    pbtrl("train", "toy_quadratic")
    Path("runs/toy_quadratic/best.json").unlink()
    result = pbtrl("eval", "last")
    assert (result.code, result.err) == (
        2,
        "runs/toy_quadratic has no best member yet: try --member all, or one of m00, m01\n",
    )
    assert pbtrl("eval", "last", "--member", "m07").err == "no member 'm07' in runs/toy_quadratic: there are m00, m01\n"


def test_damaged_snapshot_is_named(pbtrl: Command):
    pbtrl("train", "toy_quadratic")
    (newest,) = Path("runs/toy_quadratic/members/m00/snapshots").glob("000019/tensors.safetensors")
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    result = pbtrl("eval", "last", "--member", "m00")
    assert result.code == 4
    assert result.err.startswith("snapshot m00/000019: tensors.safetensors is damaged")


def test_snapshot_of_another_agent_is_refused(pbtrl: Command):
    assert pbtrl("train", "cart.yaml", "--name", "small", "agent.hidden=[8]").code == 0
    resolved = Path("runs/small/config.resolved.yaml")
    resolved.write_text(resolved.read_text().replace("hidden: [8]", "hidden: [16]"))
    result = pbtrl("eval", "small")
    assert result.code == 4
    assert "the snapshot does not fit this config" in result.err


@pytest.mark.parametrize("command", ["status", "eval", "lineage", "resume"])
def test_damaged_journal_is_named(pbtrl: Command, command: str):
    pbtrl("train", "toy_quadratic")
    path = Path("runs/toy_quadratic/journal.jsonl")
    lines = path.read_text().splitlines()
    lines[4] = "garbage"
    path.write_text("\n".join(lines) + "\n")
    before = contents(Path("runs/toy_quadratic"))
    result = pbtrl(command, "last")
    assert (result.code, result.out) == (4, "")
    assert result.err == "runs/toy_quadratic/journal.jsonl:5: not a journal line\n"
    assert contents(Path("runs/toy_quadratic")) == before


def test_untrusted_run_imports_nothing_without_flag(pbtrl: Command, tmp_path: Path):
    Path("theirs.py").write_text(
        "import gymnasium, pathlib\n"
        f"pathlib.Path({str(tmp_path / 'marker')!r}).touch()\n"
        "def make(): return gymnasium.make('CartPole-v1')\n"
    )
    result = pbtrl("train", "cart.yaml", "--name", "a", "env.id=theirs:make")
    assert result.code == 0
    assert result.out.endswith("pbtrl tb a | pbtrl eval a --trust-imports | pbtrl report a\n")
    again = pbtrl("train", "cart.yaml", "--name", "a")
    assert "continue it with `pbtrl resume a --trust-imports`, or start a new run" in again.err
    del sys.modules["theirs"]
    (tmp_path / "marker").unlink()
    longer, before = "budget.env_steps_per_member=960", contents(Path("runs/a"))
    for command in (["status", "a"], ["lineage", "a"], ["list"], ["verify", "a"], ["schedule", "a"]):
        assert pbtrl(*command).code == 0
    for command in (["eval", "a"], ["resume", "a"], ["resume", "a", longer], ["replay", "a"]):
        refused = pbtrl(*command)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.startswith(
            "runs/a asks to import 'theirs', which runs its code: allow it with --trust-imports"
        )
    assert not (tmp_path / "marker").exists()
    assert contents(Path("runs/a")) == before
    assert pbtrl("report", "a").code == 0
    assert not (tmp_path / "marker").exists()
    assert pbtrl("eval", "a", "--trust-imports").code == 0
    assert (tmp_path / "marker").exists()
    assert pbtrl("resume", "a", longer, "--trust-imports").code == 0


def test_module_named_by_own_config_needs_no_trust_flag(pbtrl: Command):
    """The resume command that is printed then works as it is."""
    line = ["train", "cart.yaml", "--name", "a", "--if-exists", "resume", "env.id=tests.faulty_envs:cart"]
    assert pbtrl(*line).code == 0
    assert pbtrl(*line, "budget.env_steps_per_member=960").code == 0
    message = pbtrl(*line).out
    assert "To continue: pbtrl resume a --trust-imports budget.env_steps_per_member=1920" in message


# Real envs


def test_mujoco_in_worker_processes(pbtrl: Command):
    """Library output goes to the members' logs and not to the console."""
    result = pbtrl(
        "train", "cart.yaml", "--name", "cheetah", "env.id=HalfCheetah-v5", "env.backend=auto",
        "env.between_slices=continue", "population.size=2", "population.mode=async", "execution.backend=processes",
        "execution.workers=1", "final.candidates=1", "final.selection_episodes=1", "final.episodes=2",
    )  # fmt: skip
    assert result.code == 0
    received = [line for line in result.err.splitlines() if not line.startswith("warning: a slice of 240 env steps")]
    assert received == []
    assert "HalfCheetah-v5, 17 -> 6 continuous actions" in result.out
    assert "2 members on 1 worker, 4 envs each" in result.out
    score = pbtrl("eval", "cheetah", "--episodes", 2, "--deterministic", "--json").json
    assert (score["episodes"], score["length_mean"], score["deterministic"]) == (2, 1000, True)
    assert len(score["ci95"]) == 2
    status = pbtrl("status", "cheetah", "--json").json
    assert [(m["env_steps"], m["frames"]) for m in status["members"]] == [(720, 720)] * 2


def test_atari_game(pbtrl: Command):
    result = pbtrl(
        "train", "cart.yaml", "--name", "pong", "env.id=ALE/Pong-v5", "env.num_envs=1", "population.size=2",
        "env.kwargs.max_num_frames_per_episode=240", "env.between_slices=continue", "budget.env_steps_per_member=40",
        "strategy.ready.slice_steps=20", "final.candidates=1", "final.selection_episodes=1", "final.episodes=1",
    )  # fmt: skip
    assert result.code == 0
    assert "ALE/Pong-v5, 4x84x84 -> 18 actions, sticky" in result.out
    assert "(320 frames)" in result.out
    score = pbtrl("eval", "pong", "--episodes", 1, "--json").json
    assert (score["protocol"], score["env_steps"], score["length_mean"], score["ci95"]) == ("sticky", 40, 60, None)
    assert [m["frames"] for m in pbtrl("status", "pong", "--json").json["members"]] == [160, 160]


def test_workers_with_actors(pbtrl: Command, tmp_path: Path):
    result = pbtrl(
        "train", "cart.yaml", "--name", "far", "population.size=1", "execution.backend=processes",
        "acting={mode: actors, processes: 2}",
    )  # fmt: skip
    assert result.code == 0
    assert "1 member on 1 worker, 4 envs each in 2 actors" in result.out
    header, *_, last = journal(tmp_path / "runs" / "far")
    assert header["deterministic"].startswith("no, because actors")
    assert last["kind"] == "finish"
    metrics = (tmp_path / "runs" / "far" / "members" / "m00" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["acting/lag"] >= 0 for line in metrics)


def test_bench_measures_all_parts(pbtrl: Command):
    result = pbtrl("bench", "cart.yaml", "execution.workers=1", "population.size=2", "--seconds", 0.2, "--json")
    asked = {
        "env_steps_per_s", "frames_per_s", "env_only_steps_per_s", "roofline_env_steps_per_s", "efficiency", "shares",
        "epochs", "workers", "members",
    }  # fmt: skip
    assert result.json.keys() >= asked
    assert result.json["shares"].keys() == {"env", "act", "learn", "other"}
    assert sum(result.json["shares"].values()) == pytest.approx(1.0)
    assert all(result.json[key] > 0 for key in asked - {"shares"})
    rates = [result.json[f"{part}_steps_per_s"] for part in ("env_replay", "act_only", "learn_only")]
    assert result.json["roofline_env_steps_per_s"] == pytest.approx(1 / sum(1 / rate for rate in rates))
    assert result.json["efficiency"] == result.json["env_steps_per_s"] / result.json["roofline_env_steps_per_s"]
    text = pbtrl("bench", "cart.yaml", "execution.workers=1", "population.size=2", "--seconds", 0.2).out
    parts = ["training", "env only", "env replay", "roofline", "time"]
    assert [line[:10].rstrip() for line in text.splitlines()[:5]] == parts
    assert text.splitlines()[5] == "passes 1.00  members 2  workers 1  acting inline"
    assert pbtrl("bench", "toy_quadratic").err.startswith("bench measures envs")


@pytest.mark.parametrize(
    ("acting", "more"),
    [("actors", {"learn_only_steps_per_s", "lag", "shares"}), ("hogwild", set())],
)
def test_bench_with_actors(pbtrl: Command, acting: str, more: set[str]):
    result = pbtrl(
        "bench", "cart.yaml", "execution.workers=1", "population.size=2", f"acting={{mode: {acting}, processes: 2}}",
        "--seconds", 0.5, "--json",
    ).json  # fmt: skip
    rates = {"env_steps_per_s", "epochs", "workers"}
    common = rates | {"frames_per_s", "env_only_steps_per_s", "env_only_ratio", "members", "inline_ratio"}
    assert result.keys() == common | more | {"acting", "backend", "inline"}
    assert all(result[key] > 0 for key in common)
    assert result["inline_ratio"] == result["env_steps_per_s"] / result["inline"]["env_steps_per_s"]
    assert all(value > 0 for value in result["inline"].values())
    learning = (
        {"learn_only_steps_per_s", "learn_one_thread_only_steps_per_s", "threads"} if acting == "actors" else set()
    )
    assert result["inline"].keys() == rates | learning
    if acting == "actors":
        assert result["lag"] > 0
        assert result["shares"].keys() == {"learn", "wait", "other"}
        assert sum(result["shares"].values()) == pytest.approx(1.0)


def test_bench_compares_actors_with_inline(pbtrl: Command):
    text = pbtrl("bench", "cart.yaml", "population.size=1", "acting={mode: actors, processes: 2}", "--seconds", 0.2).out
    parts = ["training", "env only", "learn only", "lag", "inline", "learner", "time"]
    assert [line[:10].rstrip() for line in text.splitlines()[:7]] == parts
    assert "actors of 2 processes reach" in text
    assert text.endswith("\npasses 1.00  members 1  workers 1  acting actors of 2 processes\n")
    assert re.search(r"^learner +[\d.]+ ms per env step with one thread; [\d.]+ where the learner acts", text, re.M)


# In a process of its own


def ends_well_without_output(process: subprocess.Popen[str]) -> None:
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0


def test_closed_pipe_is_no_error(tmp_path: Path):
    with spawn(tmp_path, "config", "schema") as process:
        ends_well_without_output(process)


def test_run_continues_when_its_output_is_closed(pbtrl: Command, tmp_path: Path):
    with spawn(tmp_path, "train", "toy_quadratic") as process:
        ends_well_without_output(process)
    assert pbtrl("status", "last", "--json").json["state"] == "finished"


def test_tensorboard_serves_on_localhost_only(pbtrl: Command, tmp_path: Path):
    pbtrl("train", "toy_quadratic")
    with spawn(tmp_path, "tb", "last", "--port", 0) as process:
        assert process.stdout
        assert process.stderr
        try:
            line = process.stdout.readline()
            assert line.startswith("TensorBoard of runs/toy_quadratic/tb on http://localhost:"), process.stderr.read()
            with urllib.request.urlopen(line.split()[4] + "data/runs") as answer:
                assert json.load(answer) == ["m00", "m01", "population"]
            with spawn(tmp_path, "tb", "last", "--port", line.split(":")[2].split("/")[0]) as late:
                assert late.stderr
                assert "already in use" in late.stderr.read()
                assert late.wait() == 2
        finally:
            os.killpg(process.pid, signal.SIGINT)
        assert (process.stdout.read(), process.stderr.read(), process.wait()) == ("", "", 0)
