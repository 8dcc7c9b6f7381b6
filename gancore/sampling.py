"""Sampling: generated samples from a trained generator, the same ones each time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from gancore.data import to_uint8
from gancore.errors import InputError
from gancore.randomness import Stream, kept
from gancore.ranks import Ranks

BATCH = 256
"""Latents a batch: part of what identifies samples, so it is fixed."""

CALIBRATION_BATCHES = 16

SAMPLING = "sampling"
"""What goes on, to a `Progress`, while samples are generated."""

Progress = Callable[[str, int, int], None]
"""Called with what goes on, how much of it is done, and how much there is."""


def latent_size(generator: nn.Module) -> int:
    """Return the size of a generator's noise vector, its attribute `latent`."""
    size = getattr(generator, "latent", None)
    if not isinstance(size, int):
        raise InputError(
            f"{type(generator).__name__} does not say how long its noise vector is: "
            "give it an attribute `latent`, an int"
        )
    return size


def calibrated(generator: nn.Module, seed: int) -> nn.Module:
    """Return a copy in eval mode whose BatchNorm statistics are those of its own weights.

    They are estimated anew from a fixed noise stream of 4,096 latents: an average of weights has
    no use for the statistics of the raw ones. The generator itself is left as it was.
    """
    generator = copy.deepcopy(generator)
    device = next(generator.parameters()).device
    with torch.no_grad(), kept():
        Stream(seed, "global/calibration", device).seed_global(0)  # for dropout
        update_bn(_latents(generator, seed, "calibration", range(CALIBRATION_BATCHES)), generator)
    return generator.eval()


@torch.no_grad()
def generate(
    generator: nn.Module,
    count: int,
    *,
    seed: int,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Tensor:
    """Return `count` samples on the CPU: uint8 (count, C, H, W), or float32 (count, d) points.

    A function of the generator, its device and the seed, for one that draws noise of its own too;
    the first n of many are the n of few. Mode and gradients of the generator are left alone:
    `calibrated` comes first.

    ranks: processes that share the work; the first has the samples, the others have none (0, …)
    """
    ranks = ranks or Ranks()
    numbers = range(ranks.index, -(-count // (BATCH * ranks.count)) * ranks.count, ranks.count)
    noise = Stream(seed, "global/samples", next(generator.parameters()).device)
    batches: list[Tensor] = []
    for number, latents in zip(numbers, _latents(generator, seed, "samples", numbers), strict=True):
        with kept():
            noise.seed_global(number)
            samples = generator(latents)
        samples = (to_uint8(samples) if samples.dim() == 4 else samples.float()).cpu()
        batches += ranks.gather(samples)
        if progress:
            progress(SAMPLING, min(len(batches) * BATCH, count), count)
    return torch.cat(batches)[:count] if batches else samples[:0]


def _latents(
    generator: nn.Module, seed: int, stream: str, numbers: Iterable[int]
) -> Iterator[Tensor]:
    device = next(generator.parameters()).device
    source = Stream(seed, f"latents/{stream}", device)
    for number in numbers:
        yield torch.randn(BATCH, latent_size(generator), generator=source.at(number), device=device)
