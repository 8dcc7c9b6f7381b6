"""What all tests share: one thread, a cache of their own, a CUDA device only where there is one."""

import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; subprocesses inherit it

import pytest
import torch
from helpers import Gan

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache out of the tests, and the tests out of it; subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def undrawn() -> Iterator[None]:
    """Spare the runs of this process their curves, which take longer than all else of a small one.

    test_report.py has some drawn, and test_cli.py a run's, in a process of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "gancore.training.session.plot_curves", lambda records, path, recipe: path.touch()
        )
        yield


@pytest.fixture
def gan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gan:
    """Call `gan` in this process, for what needs no process of its own (see `helpers.started`)."""
    from gancore.cli import main

    def call(*arguments: object) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["gan", *map(str, arguments)])
            patch.setattr(warnings, "formatwarning", warnings.formatwarning)
            capsys.readouterr()
            code = 0
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a network."""
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here: apt-get install chromium")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *quiet])
        yield opened
        opened.close()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "xdist_group(name): in one process, where there are many")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
