"""Critics that score each sample alone, and critics that look at others too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

B, T, D = 6, 5, 4
"""Samples (B, T, D): sequences, or one-dimensional images."""

Scoring = Callable[[Tensor], Tensor]


def samples(*shape: int) -> Tensor:
    return torch.randn(shape or (B, T, D), dtype=torch.float64)


class Through(nn.Module):
    """A critic whose forward is a function of its parts and x."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(SimpleNamespace(**self.parts), x)


def chain(*layers: nn.Module, features: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(T * D, 3), *layers, nn.Linear(features, 1))


def through(forward: Callable[..., Tensor], **parts: nn.Module) -> nn.Module:
    return Through(forward, **parts)


def deviation(x: Tensor) -> Tensor:
    """Progressive GANs' minibatch standard deviation, in groups of two."""
    groups = x.flatten(1).reshape(2, -1, T * D)
    spread = groups.var(0, correction=0).add(1e-8).sqrt().mean(1).repeat(2)
    return torch.cat([x.flatten(1), spread[:, None]], 1)


def attended(parts: Any, x: Tensor) -> Tensor:
    flat = parts.embed(x.flatten(1))
    out: Tensor = parts.head(parts.attention(flat, flat, flat)[0])
    return out


def functional_norm(parts: Any, x: Tensor) -> Tensor:
    out: Tensor = parts.head(F.batch_norm(parts.embed(x.flatten(1)), None, None, training=True))
    return out


def in_time(parts: Any, x: Tensor) -> Tensor:
    """Recurrence along the first dimension: right for (time, batch, features)."""
    out: Tensor = parts.head(parts.cell(x)[0])[:, -1]
    return out


def over_batch(parts: Any, x: Tensor) -> Tensor:
    out: Tensor = parts.head(parts.cell(x.transpose(0, 1))[0][-1])
    return out


def batchnorm() -> nn.Module:
    return chain(nn.BatchNorm1d(3), nn.Tanh())


def calling(make: Callable[[], nn.Module], wrap: Callable[[nn.Module], Scoring]) -> Any:
    return lambda: wrap(make().double())


HEAD = {"embed": nn.Linear(T * D, 4), "head": nn.Linear(4, 1)}
RECURRENT = {"cell": nn.LSTM(D, 4), "head": nn.Linear(4, 1)}
ATTENTION = HEAD | {"attention": nn.MultiheadAttention(4, 2)}
MODULES: dict[str, Callable[[], nn.Module]] = {
    # of other samples too
    "!batch norm": batchnorm,
    "!batch norm without running statistics": lambda: chain(
        nn.BatchNorm1d(3, track_running_stats=False), nn.Tanh()
    ).eval(),
    "!F.batch_norm": lambda: through(functional_norm, **HEAD),
    "!packs of two": lambda: through(
        lambda parts, x: parts.head(x.reshape(B // 2, -1).tanh()).repeat_interleave(2, 0),
        head=nn.Linear(2 * T * D, 1),
    ),
    "!packs of all": lambda: through(
        lambda parts, x: parts.head(x.reshape(1, -1).tanh()).expand(B, 1),
        head=nn.Linear(B * T * D, 1),
    ),
    "!recurrence along the batch": lambda: through(in_time, **RECURRENT),
    "!attention over the batch": lambda: through(attended, **ATTENTION),
    "!minibatch standard deviation": lambda: through(
        lambda parts, x: parts.head(deviation(x)).tanh(), head=nn.Linear(T * D + 1, 1)
    ),
    "!centered": lambda: through(
        lambda parts, x: parts.head((x - x.mean(0)).flatten(1)).tanh(), head=nn.Linear(T * D, 1)
    ),
    "!a softmax over samples": lambda: through(
        lambda parts, x: parts.head(x.flatten(1)).softmax(0), head=nn.Linear(T * D, 1)
    ),
    "!compared in pairs": lambda: through(
        lambda parts, x: parts.head(F.normalize(x.flatten(1)) @ F.normalize(x.flatten(1)).T),
        head=nn.Linear(B, 1),
    ),
    "!of the next sample alone": lambda: through(
        lambda parts, x: parts.head(x.roll(1, 0).flatten(1)).tanh(), head=nn.Linear(T * D, 1)
    ),
    # of one sample alone
    "batch norm in eval mode": lambda: batchnorm().eval(),
    "layer norm": lambda: chain(nn.LayerNorm(3), nn.Tanh()),
    "group norm": lambda: nn.Sequential(
        nn.Conv1d(T, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4 * D, 1)
    ),
    "instance norm": lambda: nn.Sequential(
        nn.InstanceNorm1d(T, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(T * D, 1)
    ),
    "recurrence, time first": lambda: through(over_batch, **RECURRENT),
    "attention over time": lambda: through(
        lambda parts, x: parts.head(parts.attention(x, x, x)[0].flatten(1)),
        attention=nn.MultiheadAttention(D, 2, batch_first=True),
        head=nn.Linear(T * D, 1),
    ),
    "transposed": lambda: through(
        lambda parts, x: parts.head(parts.first(x.permute(2, 0, 1)).tanh().sum(0)),
        first=nn.Linear(T, 3),
        head=nn.Linear(3, 1),
    ),
    "samples in columns": lambda: through(
        lambda parts, x: (parts.head.weight @ x.flatten(1).T).tanh().T, head=nn.Linear(T * D, 1)
    ),
    "two-dimensional convolutions": lambda: nn.Sequential(
        nn.Unflatten(1, (1, T)), nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(3, 1),
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.spectral_norm(nn.Linear(T * D, 1))
    ),
    "dropout": lambda: chain(nn.Dropout(0.2), nn.Tanh()),
    "mapped": lambda: through(
        lambda parts, x: torch.stack([parts.head(each.flatten()) for each in x]).tanh(),
        head=nn.Linear(T * D, 1),
    ),
    "its own standard deviation": lambda: through(
        lambda parts, x: parts.head(x.flatten(1) / x.flatten(1).std(1, keepdim=True)),
        head=nn.Linear(T * D, 1),
    ),
    "checkpointed": lambda: through(
        lambda parts, x: parts.head(
            checkpoint(lambda t: parts.embed(t.flatten(1)).tanh(), x, use_reentrant=False)
        ),
        **HEAD,
    ),
}  # fmt: skip
CRITICS: dict[str, Callable[[], Scoring]] = {
    **{name: calling(make, lambda module: module) for name, make in MODULES.items()},
    "!a lambda": calling(batchnorm, lambda module: lambda x: module(x)),
    "!a partial": calling(batchnorm, lambda m: functools.partial(lambda module, x: module(x), m)),
    "!a method": calling(batchnorm, lambda module: module.forward),
    "a lambda around layer norm": calling(
        MODULES["layer norm"], lambda module: lambda x: module(x)
    ),
    "without parameters": lambda: lambda x: x.square().flatten(1).sum(1),
}
