"""Fixtures that any test may ask for."""

import os

import pytest


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk. What a crash leaves behind is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
