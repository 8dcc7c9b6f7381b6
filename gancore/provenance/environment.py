"""The environment of a run: what it takes to know where a number came from."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import nn

from gancore.plugins import Loaded
from gancore.provenance.identity import plugin_origins
from gancore.provenance.machine import kind_of_machine
from gancore.provenance.sources import core_code

M = TypeVar("M", bound=nn.Module)

PACKAGES = ("gancore", "torch", "torchvision", "torch-fidelity", "numpy", "pluggy")


def made_with(plugins: Iterable[Loaded]) -> dict[str, Any]:
    """Return the versions of Python and packages, where plugins come from, and the core's code."""
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "plugins": plugin_origins(plugins),
        "python": platform.python_version(),
        "core": core_code(),
    }


def environment(
    device: torch.device, plugins: Iterable[Loaded], *, world_size: int = 1
) -> dict[str, Any]:
    """Return versions, device, kind of machine, float32's precision, threads and git state."""
    on_cuda = device.type == "cuda"
    return {
        **made_with(plugins),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if on_cuda else platform.processor(),
        "float32": {  # as set: tf32 and bf16 are short cuts, ieee and none are not
            "matmul": torch.backends.cuda.matmul.fp32_precision,
            "convolution": torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
        },
        **kind_of_machine(),
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    """Return commit and whether there are changes, of the current folder, or None outside git."""
    try:
        commit = _output("git", "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_output("git", "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
