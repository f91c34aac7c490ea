"""The wheel, the sdist and an editable install: their contents, and the commands of each in an environment of its own.

Dependencies come from the environment that runs the tests; pbtrl itself does not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

from tests.command import ROOT

VERSION = "7.8.9"
DIST_INFO = f"pbtrl-{VERSION}.dist-info"
LINKED = ("agents", "envs", "configs")
LARGE = {"torch", "matplotlib", "ale_py", "mujoco", "tensorboard", "envpool"}

TINY = ["budget.env_steps_per_member=2_000", "population.size=2", "final={episodes: 2, selection_episodes: 2}"]
USERS_FILES = {
    "agents/__init__.py": "open('imported', 'w').close()\nraise ImportError('not an agent of pbtrl')\n",
    "envs/__init__.py": "",
    "envs/mine.py": "import gymnasium\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n",
}


@dataclass(frozen=True)
class Environment:
    """A virtual environment with pbtrl installed."""

    path: Path

    @property
    def site(self) -> Path:
        (site,) = self.path.glob("lib/python*/site-packages")
        return site

    def python(self, where: Path, *argv: str) -> subprocess.CompletedProcess[str]:
        return run(where, str(self.path / "bin/python"), *argv)

    def script(self, where: Path, *argv: str) -> subprocess.CompletedProcess[str]:
        return run(where, str(self.path / "bin/pbtrl"), *argv)

    def module(self, where: Path, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.python(where, "-m", "pbtrl", *argv)


def run(where: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(argv, cwd=where, env=environ, capture_output=True, text=True, timeout=110, check=False)


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, kind: str) -> Path:
    """Build `wheel`, `sdist` or `editable` as pip does, in a fresh process in the source directory."""
    target = source.parent / f"{kind} of {source.name}"
    target.mkdir()
    code = f"import sys; from hatchling.build import build_{kind} as build; build(sys.argv[1])"
    succeed(run(source, sys.executable, "-c", code, str(target)))
    (built,) = target.iterdir()
    return built


def install(path: Path, built: Path) -> Environment:
    """Install into a fresh environment, whose other packages are those of the running one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    environment = Environment(path)
    # Reading a directory from a .pth file does not read the .pth files in it, such as that of an editable pbtrl.
    lines = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (environment.site / "dependencies.pth").write_text("\n".join(lines))
    add(environment, built)
    return environment


def add(environment: Environment, built: Path) -> None:
    """Install into an environment, without dependencies."""
    python = str(environment.path / "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--ignore-installed"]
    succeed(run(environment.path, *pip, "--no-deps", "--no-index", "--no-build-isolation", str(built)))


def files(wheel: Path) -> dict[str, int]:
    """Names and checksums of a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        assert len(archive.namelist()) == len(set(archive.namelist()))
        return {info.filename: info.CRC for info in archive.infolist()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packaging")


@pytest.fixture(scope="module")
def source(base: Path) -> Path:
    """A clone of what git has or would add, with its symbolic links and a tag."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    copy = base / "source"
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    assert all((copy / "pbtrl" / name).is_symlink() for name in LINKED)
    for command in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "all"], ["tag", f"v{VERSION}"]):
        succeed(git(copy, *command))
    return copy


def git(where: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return run(where, "git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false", *argv)


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build(source, "wheel")


@pytest.fixture(scope="module")
def sdist(source: Path) -> Path:
    return build(source, "sdist")


@pytest.fixture(scope="module")
def unpacked(base: Path, sdist: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(base / "unpacked", filter="data")
    (directory,) = (base / "unpacked").iterdir()
    return directory


@pytest.fixture(scope="module")
def installed(base: Path, wheel: Path) -> Environment:
    return install(base / "installed", wheel)


@pytest.fixture(scope="module")
def editable(base: Path, source: Path) -> Environment:
    return install(base / "editable", build(source, "editable"))


@pytest.fixture
def environment(request: pytest.FixtureRequest) -> Environment:
    result: Environment = request.getfixturevalue(request.param)
    return result


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A project with its own folders `agents` and `envs`."""
    for name, text in USERS_FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


# Contents


def test_wheel_holds_nothing_but_pbtrl(source: Path, wheel: Path):
    """Every module, config and `py.typed` of the package, and no test."""
    names = set(files(wheel))
    assert {name.partition("/")[0] for name in names} == {"pbtrl", DIST_INFO}
    folder = source / "pbtrl"
    walked = {Path(at, name) for at, _, result in os.walk(folder, followlinks=True) for name in result}
    package = {str(path.relative_to(source)) for path in walked}
    assert {"pbtrl/py.typed", "pbtrl/agents/impala.py", "pbtrl/envs/gym.py", "pbtrl/configs/pong.yaml"} <= package
    assert {Path(name).suffix for name in package} == {".py", ".yaml", ".typed"}
    assert {name for name in names if name.startswith("pbtrl/")} == package
    assert not any("/tests/" in name or "/test_" in name for name in names)


def test_sdist_holds_every_module_once(unpacked: Path):
    assert not any((unpacked / name).exists() for name in LINKED)
    assert (unpacked / "pbtrl/agents/impala.py").is_file()
    assert not any(path.is_symlink() for path in unpacked.rglob("*"))
    assert {"LICENSE", "README.md", "CHANGELOG.md", "tests", "docs"} <= {path.name for path in unpacked.iterdir()}


def test_wheel_from_the_sdist_is_the_same(wheel: Path, unpacked: Path):
    assert files(build(unpacked, "wheel")) == files(wheel)


def test_metadata(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(f"{DIST_INFO}/METADATA"))
        entry_points = archive.read(f"{DIST_INFO}/entry_points.txt").decode()
        assert archive.read(f"{DIST_INFO}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert (metadata["Name"], metadata["Version"]) == ("pbtrl", VERSION)
    assert (metadata["License-Expression"], metadata.get_all("License-File")) == ("Apache-2.0", ["LICENSE"])
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload(decode=True)
    assert isinstance(description, bytes)
    assert description.strip() == (ROOT / "README.md").read_bytes().strip()
    assert entry_points.split("\n")[:2] == ["[console_scripts]", "pbtrl = pbtrl.cli.main:main"]


def test_version_is_that_of_git(tmp_path: Path, source: Path, unpacked: Path):
    """The tag; the commits since then; without a tag the commits alone; and in an sdist what git had said."""

    def version(where: Path) -> str:
        return succeed(run(where, sys.executable, "-m", "hatchling", "version")).strip()

    assert version(source) == version(unpacked) == VERSION
    clone = tmp_path / "clone"
    succeed(git(tmp_path, "clone", "-q", str(source), str(clone)))
    succeed(git(clone, "commit", "-q", "--allow-empty", "-m", "more"))
    assert version(clone).startswith("7.8.10.dev1+g")
    succeed(git(clone, "tag", "-d", f"v{VERSION}"))
    assert version(clone).startswith("0.1.dev2+g")
    shutil.rmtree(clone / ".git")
    assert version(clone) == "0.0"


def test_citation_names_the_software_and_its_license():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["cff-version"], citation["type"], citation["license"]) == ("1.2.0", "software", "Apache-2.0")
    assert citation["title"].startswith("pbtrl")
    assert {"message", "authors"} <= citation.keys()


# Installed


def test_version_of_the_installed_one(tmp_path: Path, installed: Environment, editable: Environment):
    for environment in (installed, editable):
        assert succeed(environment.script(tmp_path, "--version")) == f"pbtrl {VERSION}\n"
    code = "import sys, pbtrl, pbtrl.cli.main as cli; cli.build_parser(); sys.exit('importlib.metadata' in sys.modules)"
    succeed(installed.python(tmp_path, "-c", code))
    assert succeed(installed.python(tmp_path, "-c", "import pbtrl; print(pbtrl.__version__)")) == f"{VERSION}\n"


def test_tested_pbtrl_is_the_installed_one(tmp_path: Path, installed: Environment):
    code = "import sys, pbtrl, pbtrl.envs; print(pbtrl.__file__, pbtrl.envs.__file__, *sys.path, sep='\\n')"
    package, envs, *path = succeed(installed.python(tmp_path, "-c", code)).splitlines()
    assert package == str(installed.site / "pbtrl/__init__.py")
    assert envs == str(installed.site / "pbtrl/envs/__init__.py")
    assert str(ROOT) not in path


def test_commands_in_an_empty_directory(tmp_path: Path, installed: Environment):
    """Among them the shipped configs by name, and listing runs without a large library."""
    succeed(installed.script(tmp_path, "train", "toy_quadratic", "budget.env_steps_per_member=20"))
    succeed(installed.script(tmp_path, "eval", "last"))
    assert "id: HalfCheetah-v5" in succeed(installed.script(tmp_path, "config", "show", "quickstart"))
    names = [path.stem for path in (ROOT / "configs").glob("*.yaml")]
    code = (
        "import sys, pbtrl; from pbtrl.cli.main import main\n"
        "assert main(['list']) == 0\n"
        f"assert not {LARGE} & sys.modules.keys(), sys.modules.keys()\n"
        f"assert all(main(['config', 'show', name]) == 0 for name in {names})\n"
    )
    assert "toy_quadratic" in succeed(installed.python(tmp_path, "-c", code))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_installed_sdist_and_wheel_train(tmp_path: Path, base: Path, sdist: Path, installed: Environment):
    for environment in (installed, install(base / "from sdist", sdist)):
        where = tmp_path / environment.path.name
        where.mkdir()
        succeed(environment.script(where, "doctor", "cartpole"))
        succeed(environment.script(where, "train", "cartpole", *TINY))
        succeed(environment.script(where, "eval", "last", "--episodes", "2"))
        assert not any(log.read_text() for log in where.rglob("log.txt"))


OWN_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "own-things"
version = "1.0"
[project.entry-points."pbtrl.agents"]
clipped = "my_agent:MyAgentSettings"
[project.entry-points."pbtrl.trainables"]
mine = "my_model:MyModel"
[tool.hatch.build.targets.wheel]
only-include = ["my_agent.py", "my_model.py"]
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_examples_of_the_docs_as_a_package_with_entry_points(tmp_path: Path, wheel: Path):
    """Installed beside pbtrl, and trained by their bare names from a directory without their code."""
    from tests.test_docs import DOCS, SMALL, files

    environment, own, where = install(tmp_path / "environment", wheel), tmp_path / "own", tmp_path / "elsewhere"
    own.mkdir()
    where.mkdir()
    (own / "pyproject.toml").write_text(OWN_PROJECT)
    for page in ("own-agent.md", "own-trainable.md"):
        for name, text in files(DOCS / page).items():
            (where if name.endswith(".yaml") else own).joinpath(name).write_text(text)
    add(environment, build(own, "wheel"))
    for page, setting in (("own-agent.md", "agent.name=clipped"), ("own-trainable.md", "trainable.name=mine")):
        config, overrides = SMALL[page]
        succeed(environment.script(where, "train", config, *overrides, setting, "--name", page))
        assert "finished" in succeed(environment.script(where, "status", page))
        succeed(environment.script(where, "eval", page))


# Beside a user's own folders `agents` and `envs`


@pytest.mark.parametrize(
    ("environment", "command"), [("installed", "module"), ("editable", "script")], indirect=["environment"]
)
def test_commands_beside_a_users_agents_and_envs(users: Path, environment: Environment, command: str):
    pbtrl_command = getattr(environment, command)
    succeed(pbtrl_command(users, "list"))
    succeed(pbtrl_command(users, "train", "cartpole", "env.id=envs.mine:make", "--dry-run"))
    assert not (users / "imported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["script", "module"])
@pytest.mark.parametrize("environment", ["installed", "editable"], indirect=True)
def test_training_on_a_users_env_in_a_folder_envs(users: Path, environment: Environment, command: str):
    """Worker processes import it too; opening the run imports it only with permission."""
    pbtrl_command = getattr(environment, command)
    succeed(pbtrl_command(users, "train", "cartpole", "env.id=envs.mine:make", *TINY))
    assert pbtrl_command(users, "eval", "last", "--episodes", "2").returncode == 2
    succeed(pbtrl_command(users, "eval", "last", "--episodes", "2", "--trust-imports"))
    assert "cartpole" in succeed(pbtrl_command(users, "list"))
    assert not (users / "imported").exists()
    assert not any(log.read_text() for log in users.rglob("log.txt"))


# Editable


EVERY_MODULE = """
import importlib, importlib.util, os, pkgutil, sys
import pbtrl

for module in pkgutil.walk_packages(pbtrl.__path__, "pbtrl."):
    if module.name not in ("pbtrl.__main__", "pbtrl.envs.pool", "pbtrl.execution.ray", "pbtrl.execution.ray_acting"):
        importlib.import_module(module.name)
names = {}
for name, module in sorted(sys.modules.items()):
    path = getattr(module, "__file__", None)
    if path and os.path.realpath(path).startswith(sys.argv[1] + os.sep):
        names.setdefault(os.path.realpath(path), []).append(name)
assert {"pbtrl.agents.impala", "pbtrl.envs.gym", "pbtrl.cli.main"} <= {n for several in names.values() for n in several}
print(*(several for several in names.values() if len(several) > 1))
print(*(name for name in ("agents", "envs", "configs", "tests") if importlib.util.find_spec(name)))
"""


def test_editable_install_has_one_name_for_every_module(tmp_path: Path, source: Path, editable: Environment):
    """Imported from another directory, as the console script does, which does not look in the working directory."""
    (tmp_path / "script").mkdir()
    (tmp_path / "script/every_module.py").write_text(EVERY_MODULE)
    done = editable.python(tmp_path, "script/every_module.py", str(source.resolve()))
    assert succeed(done) == "\n\n"
    code = "import pbtrl.agents, pbtrl.envs; print(pbtrl.agents.__file__, pbtrl.envs.__file__, sep='\\n')"
    paths = [Path(line).resolve() for line in succeed(editable.python(tmp_path, "-c", code)).splitlines()]
    assert paths == [source.resolve() / "agents/__init__.py", source.resolve() / "envs/__init__.py"]
