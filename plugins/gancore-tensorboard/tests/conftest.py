"""Each test in a folder of its own, which takes what the plugin writes where it is not told."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """Let the collections below look at what tests make, and not at all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    gc.collect()  # writers close here, where an unclosed file is an error
