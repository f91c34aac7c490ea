"""Checks of a Ray cluster's address and of the login to it, before Ray is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import stat
from pathlib import Path

from pbtrl.config.sections import RAY_CLIENT, Execution
from pbtrl.errors import ConfigProblem, MissingPackageError, RunError
from pbtrl.system.files import reason

REACH = 5.0  # seconds for a connection to the cluster's head
SETTINGS = b"\x04"  # type of the first frame of both sides
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0\0\0\0\0"
SESSION = re.compile(r"/session_\d{4}-\d\d-\d\d_")  # folder that Ray deletes


def check_settings(settings: Execution) -> None:
    """Check what can be known without Ray.

    Raises:
        ConfigProblem: Ray is not installed, nothing answers at the address, or the cluster has no token login.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingPackageError("execution.backend: ray", "ray", "ray", ("execution", "backend"))
    address = cluster_address(settings)
    if address == "local":
        return
    if not settings.insecure and login_problem() is not None:
        raise ConfigProblem(
            f"{login_problem()}: whoever reaches the cluster could run code on it. Start all nodes with "
            "RAY_AUTH_MODE=token and one token file, and set both here too; or set execution.insecure: true on a "
            "network that you trust",
            ("execution", "address"),
        )
    if address != "auto":
        _reach(address)


def cluster_address(settings: Execution) -> str:
    """Return `local`, `auto` or HOST:PORT; RAY_ADDRESS counts where the config leaves it open.

    Raises:
        ConfigProblem: RAY_ADDRESS is no such address.
    """
    if settings.address != "auto" or not (given := os.environ.get("RAY_ADDRESS")):
        return settings.address
    if given.startswith("ray://"):
        raise ConfigProblem(f"RAY_ADDRESS is {given!r}: {RAY_CLIENT}", ("execution", "address"))
    try:
        return Execution(address=given).address
    except ValueError as error:
        raise ConfigProblem(f"RAY_ADDRESS is {given!r}, not HOST:PORT", ("execution", "address")) from error


def login_problem() -> str | None:
    """Return why this process has no token for a cluster; None if it has one."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return "token login is off (RAY_AUTH_MODE is not `token`)"
    if os.environ.get("RAY_AUTH_TOKEN") or token_file().is_file():
        return None
    return f"there is no token (neither RAY_AUTH_TOKEN nor {token_file()})"


def token_file() -> Path:
    """Return the path of the token."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token_problem() -> str | None:
    """Return what is wrong with the mode of the token file; None if others cannot read it, or there is none."""
    try:
        mode = stat.S_IMODE(token_file().stat().st_mode)
    except OSError:
        return None
    if mode & 0o077:
        return f"{token_file()} has mode {mode:04o}: whoever reads it can run code as you; chmod 600 {token_file()}"
    return None


def check_run_directory(run: Path) -> None:
    """Raise RunError if a run directory lies in a session folder of Ray, which a job's working directory does."""
    if SESSION.search(f"{run.resolve()}/"):
        raise RunError(f"{run} lies in a session folder of Ray, which is deleted: give another --runs")


def _reach(address: str) -> None:
    """Check that a server of HTTP/2, which Ray's head is, answers; at another one Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REACH) as connection:
            connection.sendall(HTTP2_HELLO)
            answers = os.environ.get("RAY_USE_TLS", "0") != "0" or connection.recv(9)[3:4] == SETTINGS
    except (OSError, OverflowError) as error:
        why = reason(error) if isinstance(error, OSError) else str(error)
    else:
        if answers:
            return
        why = "something else does"
    raise ConfigProblem(
        f"no Ray cluster answers at {address} ({why}): is its head running, and is this the port that "
        "`ray start --head` printed?",
        ("execution", "address"),
    )
