"""A cluster of three nodes on this machine, and `gan` in this process."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import ray.cluster_utils
from helpers import Gan


def pytest_configure(config: pytest.Config) -> None:
    """Know the mark where pytest-xdist is not installed."""
    config.addinivalue_line("markers", "xdist_group(name): in one process, where there are many")


@pytest.fixture
def gan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gan:
    """Call `gan` in this process: its exit code, output and errors."""
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
def nodes() -> Iterator[Any]:
    """A cluster whose head makes no runs; the two others make one at a time each."""
    small = {"object_store_memory": 80 << 20}
    before = signal.getsignal(signal.SIGTERM)  # Ray has one of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # not after every other test that goes on here
        made = ray.cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, **small},
        )
        try:
            for _ in range(2):
                made.add_node(num_cpus=1, wait=False, **small)
            yield made
        finally:
            made.shutdown()
            signal.signal(signal.SIGTERM, before)
