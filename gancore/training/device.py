"""Devices: which one a run is on, and how tensors lie in its memory."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from gancore.distributed.launching import is_launched
from gancore.distributed.ranks import Ranks
from gancore.errors import InputError
from gancore.isolation.randomness import Randomness


@dataclass(frozen=True)
class Host:
    """Where a run computes: its device, the processes that share it, their random numbers."""

    device: torch.device
    ranks: Ranks
    randomness: Randomness

    @classmethod
    def join(cls, name: str, seed: int) -> Host:
        """Choose the device and meet the other processes. Raises InputError and RunError."""
        device = choose_device(name)
        ranks = Ranks.join(device)
        return cls(device, ranks, Randomness(seed, device, index=ranks.index))


M = TypeVar("M", bound=nn.Module)

MEMORY_FORMATS = {"cuda": torch.channels_last}
"""How images and the weights of convolutions lie in memory; as they were made elsewhere."""


def named_device(name: str) -> torch.device:
    """Return the device of a name that torch knows, whether there is one here or not.

    Raises InputError for any other name.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "meta" or (device.type == "cpu" and name != "cpu"):
        raise InputError(
            f"device {name!r}: expected auto, cpu, cuda or cuda:N, such as --device cuda:0"
        )
    return device


def choose_device(name: str) -> torch.device:
    """Return the device for auto, cpu, cuda (cuda:1 …) or the name of another that torch has here.

    auto is CUDA where there is one, else the CPU. Of torchrun's processes each has its own device.
    Warns of a kind that gancore was not tried on. Raises InputError for what is no device, and for
    one that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name) if name == "meta" else named_device(name)
    if device.type in ("cpu", "meta"):
        return device
    if device.type != "cuda":
        there = torch.accelerator.current_accelerator(check_available=True)
        if there is None or there.type != device.type:
            raise InputError(f"device {device}: torch sees no {device.type} here. Use --device cpu")
        warnings.warn(f"device {name}: gancore was not tried here, on {device.type}", stacklevel=1)
        return device
    if not torch.cuda.is_available():
        raise InputError(
            "device cuda: torch sees no CUDA device here. "
            "Use --device cpu, or install a CUDA build of torch and its driver"
        )
    count = torch.cuda.device_count()
    number = name.partition(":")[2]
    if number and int(number) >= count:  # not device.index, which begins anew after 255
        raise InputError(f"device {name}: torch sees {count} CUDA devices here, from cuda:0 on")
    if not number and is_launched():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.index >= count:
            raise InputError(
                f"device cuda: each process of a run needs a device of its own, and there are "
                f"{count} here: torchrun --nproc-per-node {count}"
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
