"""The caller's process: a public call leaves it as it was, whether it returns or raises."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator

from gancore.isolation.randomness import kept

P = ParamSpec("P")
R = TypeVar("R")

CUDNN: Any = torch.backends.cudnn  # its stubs leave the precisions out
SWITCHES = (
    *((CUDNN, name) for name in ("enabled", "benchmark", "deterministic")),
    *((operation, "fp32_precision") for operation in (CUDNN.conv, CUDNN.rnn)),
)
"""`allow_tf32` can't be read where a caller's convolutions and recurrences differ in it."""

_is_inside = False


def leaving_no_trace(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function leave its caller's process as it was (`undisturbed`)."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with undisturbed():
            return function(*args, **kwargs)

    return call


@contextmanager
def undisturbed() -> Iterator[None]:
    """Work with settings of our own, and put back the caller's.

    Those are torch's, NumPy's and Python's global generators, cuDNN's switches, the number of
    threads, the default dtype (ours is float32), and whether gradients are on (and inference mode
    off). Within another it does nothing.
    """
    global _is_inside
    if _is_inside:
        yield
        return
    generator = get_bit_generator()
    switches = [(*switch, getattr(*switch)) for switch in SWITCHES]
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    grad_mode = torch.is_grad_enabled()
    _is_inside = True
    with torch.inference_mode(False), kept():
        try:
            if not isinstance(generator, np.random.MT19937):  # no other can be seeded
                set_bit_generator(np.random.MT19937())
            CUDNN.deterministic = True  # or a resumed run would drift
            torch.set_grad_enabled(True)
            torch.set_default_dtype(torch.float32)
            yield
        finally:
            set_bit_generator(generator)
            for where, name, value in switches:
                if getattr(where, name) != value:
                    setattr(where, name, value)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad_mode)
            _is_inside = False
