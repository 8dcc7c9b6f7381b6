"""What all tests share: one thread, and a CUDA device only where there is one."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; subprocesses inherit it

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
