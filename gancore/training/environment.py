"""The environment of a run: what it takes to know where a number came from."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gancore.errors import InputError
from gancore.machine import kind_of_machine
from gancore.plugins import Loaded
from gancore.ranks import is_launched
from gancore.sources import core_code
from gancore.training.identity import plugin_origins

M = TypeVar("M", bound=nn.Module)

PACKAGES = ("gancore", "torch", "torchvision", "torch-fidelity", "numpy", "pluggy")

MEMORY_FORMATS = {"cuda": torch.channels_last}
"""How images and the weights of convolutions lie in memory; as they were made elsewhere."""


def choose_device(name: str) -> torch.device:
    """Return the device for auto, cpu or cuda (cuda:1 …); of torchrun's processes each has its own.

    Raises InputError for what is no device, and when CUDA is asked for and there is none, or too
    few of them.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r}: expected auto, cpu, cuda or cuda:N") from error
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise InputError(
            "device cuda: torch sees no CUDA device here. "
            "Use --device cpu, or install a CUDA build of torch and its driver"
        )
    there = torch.cuda.device_count()
    number = name.partition(":")[2]
    if number and int(number) >= there:  # not device.index, which begins anew after 255
        raise InputError(f"device {name}: torch sees {there} CUDA devices here, from cuda:0 on")
    if not number and is_launched():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= there:
            raise InputError(
                f"device cuda: each process of a run needs a device of its own, and there are "
                f"{there} here: torchrun --nproc-per-node {there}"
            )
    return device


def arranged(tensor: Tensor) -> Tensor:
    """Return a tensor in the layout that suits its device."""
    layout = MEMORY_FORMATS.get(tensor.device.type)
    return tensor.to(memory_format=layout) if layout and tensor.dim() == 4 else tensor


def dense(samples: Tensor) -> Tensor:
    """Return samples as views take them: contiguous, or in the layout that suits their device."""
    layout = MEMORY_FORMATS.get(samples.device.type)
    if layout and samples.dim() == 4 and samples.is_contiguous(memory_format=layout):
        return samples
    return samples.contiguous()


def place(module: M, device: torch.device) -> M:
    """Move a module to a device, its tensors arranged for that; return it."""
    module.to(device)._apply(arranged)  # type: ignore[no-untyped-call]
    return module


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
