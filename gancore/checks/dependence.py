"""A probe for scores that depend on other samples than their own.

Penalties take ∇ₓ Σ D(x) for the gradients of each score by its own sample. That is right only where
no score depends on another sample. A list of layers can't tell (packs, recurrence along the batch,
batch normalization in a lambda). The gradient of one score by all samples tells.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from gancore.checks.compiling import refuse_compiled
from gancore.errors import ContractError
from gancore.isolation.buffers import buffers_kept
from gancore.isolation.randomness import kept


class BatchStatisticsWarning(UserWarning):
    """A penalty of scores that depend on other samples was allowed."""


def refuse_dependence(
    critic: object, scores: Tensor, x: Tensor, *, allow_batch_statistics: bool
) -> None:
    """Raise ContractError where a score depends on other samples than its own.

    scores: (B,) the critic's for x (B, *), with the graph to x. One that can't be differentiated
    twice, as torch.compile made a part of it, is refused too. Where it is allowed, a
    BatchStatisticsWarning says what a penalty of them means, once a critic.

    It takes one first-order backward pass, of the score in the middle, once a critic: what passed
    is remembered by its modules and their modes, and by the code of functions. Where that score's
    own gradient is zero nothing is known, and the next call probes again. Rows that are not finite
    are nobody's evidence. One sample, tensors without values and code that is being compiled or
    captured are left alone.
    """
    if torch.compiler.is_compiling() or len(x) < 2 or _OFF.get() or _unreadable(x):
        return
    parts = _parts(critic)
    if parts in _PASSED or (allow_batch_statistics and parts in _WARNED):
        return
    refuse_compiled(scores)
    own = len(x) // 2
    # a checkpointed critic runs again in its backward pass
    modules = [part for part in parts if isinstance(part, nn.Module)]
    with kept(), buffers_kept(modules):
        (gradient,) = torch.autograd.grad(scores[own], x, retain_graph=True, materialize_grads=True)
    rows = gradient.reshape(len(x), -1) if gradient.numel() else gradient.new_zeros(len(x), 1)
    finite = rows.isfinite().all(1)
    reached = ((rows != 0).any(1) & finite).tolist()
    others = sum(reached) - reached[own]
    if not others:
        if reached[own] and bool(finite.all()):
            _PASSED.add(parts)
        return
    samples = f"{others} other sample{'s' if others > 1 else ''}"
    what = f"the critic's score of sample {own} depends on {samples}"
    if not allow_batch_statistics:
        raise ContractError(
            f"{what}, so scores are of the whole batch and a per-sample gradient penalty means "
            "nothing: score each sample alone (instead of batch normalization use layer, group, "
            "instance or no normalization; no packs, minibatch statistics or attention across "
            "samples; the batch first in recurrent layers) or, knowing this, set "
            "train.allow_batch_statistics = true (in Python allow_batch_statistics=True)"
        )
    _WARNED.add(parts)
    warnings.warn(
        f"{what}, which is allowed: what is penalized is a sample's effect on the sum of all "
        "scores, not the gradient of its own score",
        BatchStatisticsWarning,
        stacklevel=5,
    )


@contextmanager
def unprobed() -> Iterator[None]:
    """Leave the probe out, as in updates that are counted or timed."""
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


_OFF: ContextVar[bool] = ContextVar("unprobed", default=False)


class _Remembered:
    """Critics, by what they are made of, each for as long as all of that lives."""

    def __init__(self) -> None:
        self._references: dict[Hashable, list[weakref.ref[object]]] = {}

    def __contains__(self, parts: list[object]) -> bool:
        return self._key(parts) in self._references

    def add(self, parts: list[object]) -> None:
        key = self._key(parts)

        def forget(_: object) -> None:
            self._references.pop(key, None)

        try:
            self._references[key] = [weakref.ref(part, forget) for part in parts]
        except TypeError:  # there are things without weak references: they are probed each time
            self._references.pop(key, None)

    @staticmethod
    def _key(parts: list[object]) -> Hashable:
        """Return the identities of parts and layers, and the modes, in which they are others."""
        state = [
            (id(module), module.training)
            for part in parts
            if isinstance(part, nn.Module)
            for module in part.modules()
        ]
        return (*map(id, parts), *state)


_PASSED = _Remembered()
_WARNED = _Remembered()


def _parts(critic: object) -> list[object]:
    """Return what makes a critic the same one where it is made anew at each call.

    That is modules, and of functions their code, with the modules that they name.
    """
    parts: dict[int, object] = {}
    waiting = [critic]
    while waiting:
        part = waiting.pop()
        if isinstance(part, functools.partial):
            waiting += [part.func, *part.args, *part.keywords.values()]
        elif isinstance(part, MethodType):
            waiting += [part.__func__, part.__self__]
        elif isinstance(part, FunctionType):
            if id(part.__code__) not in parts:
                parts[id(part.__code__)] = part.__code__
                waiting += _held(part)
        elif isinstance(part, list | tuple | set):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, nn.Module) or callable(part):
            parts[id(part)] = part
        elif id(part) not in parts and hasattr(part, "__dict__"):
            parts[id(part)] = part
            waiting += [value for value in vars(part).values() if _may_score(value)]
    return list(parts.values())


def _held(function: FunctionType) -> list[object]:
    """Return what a function may call: of its closure and defaults, and of what it names."""
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # a name that has no value yet
            continue
    known = [function.__globals__.get(name) for name in function.__code__.co_names]
    return held + [value for value in known if _may_score(value)]


def _may_score(value: object) -> bool:
    """Whether this is a network, or a plain container in which there may be one."""
    return isinstance(value, nn.Module | list | tuple | set | dict)


def _unreadable(x: Tensor) -> bool:
    """Whether x has no values that Python can look at."""
    return (
        x.is_meta
        or isinstance(x, FakeTensor)
        or (x.is_cuda and torch.cuda.is_current_stream_capturing())
    )
