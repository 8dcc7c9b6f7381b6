"""Sampling: generated samples from a trained generator, the same ones each time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from gancore.copies import copied
from gancore.data import to_uint8
from gancore.errors import InputError, NonFiniteError
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


def frozen_parts(network: nn.Module) -> list[str]:
    """Return the names of the modules in eval mode: parts that don't train as the rest does."""
    return [name for name, module in network.named_modules() if not module.training]


def calibrated(
    generator: nn.Module, seed: int, *, frozen: Collection[str] | None = None
) -> nn.Module:
    """Return a copy in eval mode whose normalization has the statistics of its own weights.

    They are estimated anew from a fixed noise stream of 4,096 latents: an average of weights has
    no use for the statistics of the raw ones. Only what trained with statistics of the batch is:
    what was frozen, in eval mode, stays as it is. The generator itself is left as it was.

    frozen: names of the modules that were in eval mode while it trained, by default those that are
    now; in a generator that is in eval mode as a whole, none
    """
    generator = copied(generator, "generator")
    if frozen is not None:
        for name, module in generator.named_modules():
            module.training = name not in frozen
    elif not generator.training:
        generator.train()
    device = next(generator.parameters()).device
    with torch.no_grad(), kept():
        Stream(seed, "global/calibration", device).seed_global(0)  # for dropout
        _estimate(generator, _latents(generator, seed, "calibration", range(CALIBRATION_BATCHES)))
    return generator.eval()


def _estimate(generator: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give normalization that trains the mean over batches of their statistics."""
    momenta: dict[_NormBase, float | None] = {
        module: module.momentum
        for module in generator.modules()
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None
    }
    if not momenta:
        return
    for module in momenta:
        module.reset_running_stats()
    for number, batch in enumerate(batches, 1):
        for module in momenta:  # without a momentum, batch normalization alone takes a mean
            module.momentum = None if isinstance(module, _BatchNorm) else 1 / number
        generator(batch)
    for module, momentum in momenta.items():
        module.momentum = momentum


def refuse_broken(text: str) -> None:
    """Raise NonFiniteError for samples that are inf or nan."""
    raise NonFiniteError(text)


@torch.no_grad()
def generate(
    generator: nn.Module,
    count: int,
    *,
    seed: int,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
    broken: Callable[[str], None] = refuse_broken,
) -> Tensor:
    """Return `count` samples on the CPU: uint8 (count, C, H, W), or float32 (count, d) points.

    A function of the generator, its device and the seed, for one that draws noise of its own too;
    the first n of many are the n of few. Mode and gradients of the generator are left alone:
    `calibrated` comes first.

    ranks: processes that share the work; the first has the samples, the others have none (0, …)
    broken: called, on the first, with a line that counts the samples that hold inf or nan, if any
    do; in images nan is black. By default NonFiniteError is raised
    """
    ranks = ranks or Ranks()
    numbers = range(ranks.index, -(-count // (BATCH * ranks.count)) * ranks.count, ranks.count)
    noise = Stream(seed, "global/samples", next(generator.parameters()).device)
    batches: list[Tensor] = []
    finite: list[Tensor] = []
    samples = torch.empty(0)
    for number, latents in zip(numbers, _latents(generator, seed, "samples", numbers), strict=True):
        with kept():
            noise.seed_global(number)
            samples = generator(latents)
        finite += ranks.gather(samples.flatten(1).isfinite().all(1).to(torch.uint8).cpu())
        samples = (to_uint8(samples) if samples.dim() == 4 else samples.float()).cpu()
        batches += ranks.gather(samples)
        if progress:
            progress(SAMPLING, min(len(batches) * BATCH, count), count)
    if not batches:
        return samples[:0]
    if wrong := int((torch.cat(finite)[:count] == 0).sum()):
        broken(
            f"{wrong:,} of {count:,} generated samples hold inf or nan: lower the learning rate, "
            "or look for what divides by zero in the generator"
        )
    return torch.cat(batches)[:count]


def _latents(
    generator: nn.Module, seed: int, stream: str, numbers: Iterable[int]
) -> Iterator[Tensor]:
    device = next(generator.parameters()).device
    source = Stream(seed, f"latents/{stream}", device)
    for number in numbers:
        yield torch.randn(BATCH, latent_size(generator), generator=source.at(number), device=device)
