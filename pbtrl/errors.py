"""Every error that pbtrl raises on purpose, each with a message that stands on its own.

    PbtrlError
    ├── ConfigError            a config that cannot run                              exit code 2
    ├── ConfigProblem          one mistake in a config, before it is placed in its file         2
    │   ├── MissingPackageError  a setting needs an optional package
    │   └── EnvError           an env that cannot be made, or breaks its contract    exit code 3
    │       └── RenderError    an env that cannot render                             exit code 2
    ├── RunError               a run directory cannot be created, found, locked or read   2
    │   └── DamagedError       a file of a run is missing or damaged                 exit code 4
    │       ├── JournalError
    │       ├── SnapshotError
    │       └── NewerError     only a newer pbtrl can read it
    ├── TrainingError          a run that failed, and can be resumed                    exit code 3
    ├── CallbackError          a callback raised; the run can be resumed
    ├── DiskFullError          no space, or a failing disk (also an OSError)         exit code 75
    ├── TrackingError          a tracking service cannot be reached, or refuses      exit code 3
    ├── WorkerError            a worker process could not start                      exit code 3
    ├── WorkerPoolError        a process of a cohort raised, or died repeatedly
    ├── IsolatedCallError      a call in a separate process raised or died
    ├── ChildDiedError         a child process ended without an answer
    ├── MismatchError          the learner did not use its assigned hyperparameters
    ├── NotFiniteError         the weights are not finite after a member's first slice
    └── DimensionError         a search dimension that contradicts itself

`except PbtrlError` catches all of them. A bug is any other exception; the command line shows its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override


class PbtrlError(Exception):
    """Base of every error that pbtrl raises on purpose."""


def printable(text: str) -> str:
    """Escape control characters, so that names from untrusted files cannot control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class ConfigError(PbtrlError):
    """A config that cannot run.

    Attributes:
        messages: one line per mistake. The error's text is these lines and a closing line.
    """

    def __init__(self, messages: Sequence[str]) -> None:
        self.messages = tuple(printable(message).replace("\n", "\\n") for message in messages)
        count = "1 error" if len(self.messages) == 1 else f"{len(self.messages)} errors"
        super().__init__("\n".join([*self.messages, f"{count}. Nothing was started."]))


class ConfigProblem(PbtrlError, ValueError):  # noqa: N818, a ConfigError is made of them
    """One mistake in a config, found by a check, an env, an agent or a strategy.

    Attributes:
        message: description in one line, without the location.
        paths: keys and list indices of the settings involved. The mistake is reported at the first one that an override
            set, or else at the first one in the file.
        at_key: whether the key itself is the mistake, rather than its value.
    """

    def __init__(self, message: str, *paths: tuple[str | int, ...], at_key: bool = False) -> None:
        super().__init__(message)
        self.message, self.paths, self.at_key = message, paths, at_key

    @override
    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.paths[0]))}: {self.message}" if self.paths else self.message


class MissingPackageError(ConfigProblem):
    """A setting that needs an optional package, which the message names with its extra."""

    def __init__(self, what: str, package: str, extra: str, *paths: tuple[str | int, ...]) -> None:
        super().__init__(f'{what} needs {package}, which is not installed: pip install "pbtrl[{extra}]"', *paths)


class EnvError(ConfigProblem):
    """An env that cannot be made as configured, or breaks its contract.

    Attributes:
        setting: the setting at fault with its value, as in `env.id=CartPole-v1`.
        problem: what is wrong with it.
    """

    def __init__(self, setting: str, problem: str) -> None:
        key, _, value = setting.partition("=")
        super().__init__(
            f"{value}: {problem}" if value else problem, tuple(int(k) if k.isdigit() else k for k in key.split("."))
        )
        self.setting, self.problem = setting, problem

    @override
    def __str__(self) -> str:
        return f"{self.setting}: {self.problem}"

    @override
    def __reduce__(self) -> tuple[type[EnvError], tuple[str, str]]:
        return type(self), (self.setting, self.problem)


class RenderError(EnvError):
    """An env that cannot render."""


class RunError(PbtrlError, ValueError):
    """A run directory cannot be created, found, locked or read."""


class BusyError(RunError):
    """Another process trains the run, or has just trained it."""


class DamagedError(RunError):
    """A file of a run is missing or holds something that pbtrl never wrote."""


class JournalError(DamagedError):
    """The journal cannot be read; the message names the file and the line."""


class SnapshotError(DamagedError):
    """A snapshot is missing or damaged; the message names it."""


class NewerError(DamagedError):
    """A file that only a newer pbtrl can read."""


class TrainingError(PbtrlError, RuntimeError):
    """A run failed; the message says why, and how to resume it."""


class CallbackError(PbtrlError, RuntimeError):
    """A callback raised; the cause is the error's `__cause__`. The run can be resumed."""


class DiskFullError(PbtrlError, OSError):
    """No space for a file, or a failing disk; the message says where, and how much is needed."""


class TrackingError(PbtrlError, RuntimeError):
    """A tracking service that cannot be reached, or refuses; nothing that was tracked is lost."""


class WorkerError(PbtrlError, RuntimeError):
    """A worker process could not start; the message holds its traceback."""


class WorkerPoolError(PbtrlError, RuntimeError):
    """A process of a cohort raised (its traceback is a note of the error), or died repeatedly."""


class IsolatedCallError(PbtrlError, RuntimeError):
    """A call in a separate process raised (its traceback is a note of the error), or the process died."""


class ChildDiedError(PbtrlError, RuntimeError):
    """A child process ended without an answer; the message says how it ended."""


class MismatchError(PbtrlError, RuntimeError):
    """The learner did not use the hyperparameters that it was assigned."""


class NotFiniteError(PbtrlError, FloatingPointError):
    """The weights are not finite after a member's first slice, so there are none to go back to."""


class DimensionError(PbtrlError, ValueError):
    """A search dimension that contradicts itself.

    Attributes:
        fields: the fields at fault, most likely first.
    """

    def __init__(self, message: str, *fields: str) -> None:
        super().__init__(message)
        self.fields = fields
