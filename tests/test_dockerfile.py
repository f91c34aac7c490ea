"""The Dockerfile, read instruction by instruction: there need not be a Docker engine where tests run."""

import json
import re
import shlex
import tomllib
from fnmatch import fnmatch

from pbtrl.cli.main import parse_arguments
from tests.command import ROOT

TEXT = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = [
    (line.split(maxsplit=1)[0], line.split(maxsplit=1)[1])
    for line in re.sub(r"\\\n\s*", "", TEXT).splitlines()
    if line and not line.startswith("#")
]
KNOWN = ["FROM", "ARG", "ENV", "RUN", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def arguments(kind: str) -> list[str]:
    return [argument for name, argument in INSTRUCTIONS if name == kind]


def pip_words() -> list[str]:
    (step,) = (step for step in arguments("RUN") if "pip install" in step)
    return shlex.split(step)


def test_it_is_short_and_has_only_plain_instructions() -> None:
    assert len(TEXT.splitlines()) <= 20
    assert {name for name, _ in INSTRUCTIONS} <= set(KNOWN)
    assert INSTRUCTIONS[0][0] == "FROM"


def test_base_image_is_pinned_to_a_python_that_pbtrl_supports() -> None:
    (image,) = arguments("FROM")
    minor = re.fullmatch(r"python:3\.(\d+)-slim-[a-z]+", image)
    assert minor is not None, image
    assert f"Programming Language :: Python :: 3.{minor[1]}" in PROJECT["classifiers"]


def test_apt_installs_without_a_question_and_leaves_no_lists() -> None:
    steps = [step for step in arguments("RUN") if "apt-get install" in step]
    assert steps
    for step in steps:
        assert "--yes --no-install-recommends" in step
        assert step.endswith("rm -rf /var/lib/apt/lists/*")


def test_pip_step_is_that_of_the_install_page() -> None:
    """With constraints, and with extras that exist."""
    words = pip_words()
    assert words[words.index("-c") + 1] == "/src/constraints.txt"
    assert "pip install -c constraints.txt ." in (ROOT / "docs/install.md").read_text()
    extras = re.fullmatch(r"/src\[([\w,]+)\]", words[-1])
    assert extras is not None
    assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()
    assert words[0] == "SETUPTOOLS_SCM_PRETEND_VERSION=$VERSION"  # the context has no .git
    assert any(argument.startswith("VERSION=") for argument in arguments("ARG"))


def test_commands_are_commands() -> None:
    assert json.loads(arguments("ENTRYPOINT")[0]) == ["pbtrl"]
    assert json.loads(arguments("CMD")[0]) == ["--help"]
    text = (ROOT / "docs/guides/docker.md").read_text()
    commands = re.findall(r"^docker run .*? pbtrl (.+)$", text, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        parse_arguments(shlex.split(command))


def test_context_leaves_out_what_is_large_or_not_the_source() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for name in (".git", ".venv", "runs", "site", ".mypy_cache"):
        assert any(fnmatch(name, pattern) for pattern in ignored), name
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "pbtrl", "agents", "envs", "configs"):
        assert not any(fnmatch(name, pattern) for pattern in ignored), name
