"""Versions of the installed packages."""

from __future__ import annotations

import importlib.metadata

PACKAGES = ("torch", "numpy", "gymnasium", "ale_py", "mujoco", "envpool", "safetensors")
"""Packages that every worker needs in the same version."""


def installed_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
