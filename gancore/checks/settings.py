"""Settings of the process: what torch, NumPy and the system keep for everybody in it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

from gancore.errors import ContractError

UNKNOWN = object()

TINY = 5e-324
"""The smallest number, a denormal one."""


class Setting(NamedTuple):
    """Something global: its name, what it is where torch begins, how to read and to put it."""

    name: str
    initial: object
    read: Callable[[], Any]
    put: Callable[[Any], object]


@cache
def _settings() -> tuple[Setting, ...]:
    import numpy as np
    import torch

    core: Any = torch._C  # torch's own getters go to it, at some cost
    context: Any = torch._GLOBAL_DEVICE_CONTEXT
    mkldnn: Any = torch.backends.mkldnn  # its stubs leave it out
    backends: Any = (torch.backends.cuda.matmul, mkldnn.matmul)
    entered = []

    def put_inference(on: bool) -> None:
        entered.append(torch.inference_mode(on))  # kept, as it ends where it is forgotten
        entered[-1].__enter__()

    def read_device() -> object:
        on = vars(context).get("device_context")
        return on and on.device

    def put_device(device: Any) -> None:
        torch.set_default_device(device)
        if device is None:  # which torch 2.9 can't read afterwards
            vars(context).pop("device_context", None)

    def put_autocast(on: bool) -> None:
        for device in () if on else ("cpu", "cuda"):  # what was on, its context puts back
            torch.set_autocast_enabled(device, False)

    def read_precision() -> object:
        try:
            return torch.get_float32_matmul_precision()
        except RuntimeError:  # it knows nothing of what a backend's own switch says
            return tuple(backend.fp32_precision for backend in backends)

    def put_precision(value: Any) -> None:
        if isinstance(value, str):
            torch.set_float32_matmul_precision(value)
        else:
            for backend, precision in zip(backends, value, strict=True):
                backend.fp32_precision = precision

    def read_depth() -> int:
        torch.autocast_increment_nesting()
        return int(torch.autocast_decrement_nesting())

    def put_depth(depth: int) -> None:
        while read_depth() > depth:
            if not torch.autocast_decrement_nesting():
                torch.clear_autocast_cache()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_precision()  # torch 2.9 warns of it, once a process

    return (
        Setting("inference mode", False, torch.is_inference_mode_enabled, put_inference),
        Setting("gradient mode", True, torch.is_grad_enabled, torch.set_grad_enabled),
        Setting("default dtype", torch.float32, torch.get_default_dtype, torch.set_default_dtype),
        Setting("default device", None, read_device, put_device),
        Setting("autocast", False, core._is_any_autocast_enabled, put_autocast),
        Setting("depth of autocast", 0, read_depth, put_depth),
        Setting(
            "deterministic mode",
            0,
            torch.get_deterministic_debug_mode,
            torch.set_deterministic_debug_mode,
        ),
        Setting("anomaly mode", False, torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        Setting("float32 matmul precision", UNKNOWN, read_precision, put_precision),
        Setting("cudnn.benchmark", False, core._get_cudnn_benchmark, core._set_cudnn_benchmark),
        Setting(
            "cudnn.deterministic",
            False,
            core._get_cudnn_deterministic,
            core._set_cudnn_deterministic,
        ),
        Setting("cudnn.enabled", True, core._get_cudnn_enabled, core._set_cudnn_enabled),
        Setting("mkldnn.enabled", True, core._get_mkldnn_enabled, core._set_mkldnn_enabled),
        Setting("flushing of denormals", False, lambda: TINY * 1.0 == 0, torch.set_flush_denormal),
        Setting("NumPy's treatment of errors", UNKNOWN, np.geterr, lambda old: np.seterr(**old)),
        Setting("number of threads", UNKNOWN, torch.get_num_threads, torch.set_num_threads),
        Setting("working folder", UNKNOWN, _folder, os.chdir),
    )


def _folder() -> object:
    try:
        return os.getcwd()
    except OSError:  # it is gone
        return UNKNOWN


def _values() -> list[Any] | None:
    """Return what all settings are now; None where torch is not imported."""
    return [setting.read() for setting in _settings()] if "torch" in sys.modules else None


@contextmanager
def kept(who: str) -> Iterator[None]:
    """Put global settings back to what they were.

    Raises ContractError where `who` left one changed, such as torch's gradient mode or default
    dtype, unless another error is on its way.
    """
    before = _values()
    changed = []
    try:
        yield
    finally:
        if (after := _values()) != before and after is not None:
            for number, setting in enumerate(_settings()):
                old = setting.initial if before is None else before[number]
                new = setting.read()
                if UNKNOWN not in (old, new) and new != old:
                    setting.put(old)
                    changed.append(f"{setting.name} at {new} (it was {old})")
    if changed:
        raise ContractError(
            f"{who} left the {', '.join(changed)}: put it back, as a `with` block does"
        )
