"""Sampling: generated samples from a trained generator, the same ones each time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from gancore.data import to_uint8
from gancore.distributed.ranks import Ranks
from gancore.errors import InputError, NonFiniteError
from gancore.isolation.buffers import buffers_kept
from gancore.isolation.copies import copied
from gancore.isolation.randomness import Stream, kept, states

BATCH = 256
"""Latents a block, which are drawn together: part of what identifies samples, so it is fixed."""

LARGEST = 2**24
"""Numbers in a batch of samples, at most, where a generator does not need whole blocks."""

ROUNDING = 1e-2
"""How far a sample in a batch may be from the same one alone, as a share of its norm."""

CALIBRATION_BATCHES = 16

SAMPLING = "sampling"
"""What goes on, to a `Progress`, while samples are generated."""

CALIBRATING = "calibrating"
"""And while the statistics of normalization are estimated."""

PATIENCE = 2.0
"""Seconds of that after which its progress is told."""

Progress = Callable[[str, int, int], None]
"""Called with what goes on, how much of it is done, and how much there is."""


def latent_size(generator: nn.Module) -> int:
    """Return the size of a generator's noise vector, its attribute `latent`."""
    size = getattr(generator, "latent", None)
    if isinstance(size, bool) or not isinstance(size, Integral):
        raise InputError(
            f"{type(generator).__name__} does not say how long its noise vector is: "
            "give it an attribute `latent`, an int"
        )
    if size < 1:
        raise InputError(
            f"{type(generator).__name__}.latent is {size}: make it the length of its noise "
            "vector, 1 or more"
        )
    return int(size)


def frozen_parts(network: nn.Module) -> list[str]:
    """Return the names of the modules in eval mode: parts that don't train as the rest does."""
    return [name for name, module in network.named_modules() if not module.training]


def calibrated(
    generator: nn.Module,
    seed: int,
    *,
    frozen: Collection[str] | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a copy in eval mode whose normalization has the statistics of its own weights.

    They are estimated anew from a fixed noise stream of 4,096 latents: an average of weights has
    no use for the statistics of the raw ones. Only what trained with statistics of the batch is:
    what was frozen, in eval mode, stays as it is. The generator itself is left as it was.

    frozen: names of the modules that were in eval mode while it trained, by default those that are
    now; in a generator that is in eval mode as a whole, none
    progress: called after each batch of an estimate that takes longer than two seconds
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
        _estimate(generator, seed, progress)
    return generator.eval()


def _estimate(generator: nn.Module, seed: int, progress: Progress | None) -> None:
    """Give normalization that trains the mean over batches of their statistics."""
    momenta: dict[_NormBase, float | None] = {
        module: module.momentum
        for module in generator.modules()
        if isinstance(module, _NormBase) and module.training and module.running_mean is not None
    }
    if not momenta:
        return
    began = time.perf_counter()
    for module in momenta:
        module.reset_running_stats()
    latents = _latents(generator, seed, "calibration", range(CALIBRATION_BATCHES))
    for number, batch in enumerate(latents, 1):
        for module in momenta:  # without a momentum, batch normalization alone takes a mean
            module.momentum = None if isinstance(module, _BatchNorm) else 1 / number
        generator(batch)
        if progress and time.perf_counter() - began > PATIENCE:
            progress(CALIBRATING, number, CALIBRATION_BATCHES)
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

    A function of the generator, its device, the seed and the count, for a generator that draws
    noise of its own too. Latents are drawn in blocks of 256, so the first n of many are the n of
    few; to rounding, as products of another size are rounded otherwise. Mode and gradients of the
    generator are left alone: `calibrated` comes first.

    A generator is given no more latents than samples are asked for, and at a time the largest power
    of two up to 256 of which the samples have at most 2²⁴ numbers. One that draws noise, or whose
    samples depend on the others of their batch, is given whole blocks, each seeded by its number.

    ranks: processes that share the work; the first has the samples, the others have none (0, …)
    broken: called, on the first, with a line that counts the samples that hold inf or nan, if any
    do; in images nan is black. By default NonFiniteError is raised
    """
    ranks = ranks or Ranks()
    numbers = range(ranks.index, -(-count // (BATCH * ranks.count)) * ranks.count, ranks.count)
    noise = Stream(seed, "global/samples", next(generator.parameters()).device)
    first = next(_latents(generator, seed, "samples", range(1)))[:count]
    size = _batch_size(generator, first, noise)
    if ranks.any(size is None):
        size = None
    blocks: list[Tensor] = []
    finite: list[Tensor] = []
    made = torch.empty(0)
    for number, latents in zip(numbers, _latents(generator, seed, "samples", numbers), strict=True):
        wanted = BATCH if size is None else min(BATCH, max(count - BATCH * number, 1))
        parts = []
        with kept():
            noise.seed_global(number)
            for batch in torch.split(latents[:wanted], size or BATCH):
                parts.append(_made(generator, batch))
                if progress:
                    here = sum(len(samples) for samples, _ in parts) * ranks.count
                    done = BATCH * (number - ranks.index) + here
                    progress(SAMPLING, min(done, count), count)
        made, are_finite = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        blocks += ranks.gather(_padded(made, min(BATCH, count), ranks))
        finite += ranks.gather(_padded(are_finite, min(BATCH, count), ranks))
    if not blocks:
        return made[:0]
    if wrong := int((torch.cat(finite)[:count] == 0).sum()):
        broken(
            f"{wrong:,} of {count:,} generated samples hold inf or nan: lower the learning rate, "
            "or look for what divides by zero in the generator"
        )
    return torch.cat(blocks)[:count]


def _made(generator: nn.Module, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return samples on the CPU, as `generate` does, and uint8 (B,), whether each is finite."""
    samples = generator(latents)
    are_finite = samples.flatten(1).isfinite().all(1).to(torch.uint8)
    return (to_uint8(samples) if samples.dim() == 4 else samples.float()).cpu(), are_finite.cpu()


def _batch_size(generator: nn.Module, latents: Tensor, noise: Stream) -> int | None:
    """Return how many latents a generator is given at a time; None where it needs whole blocks.

    The first sample is made alone, and then again after the second. A generator needs whole blocks
    that draws meanwhile, makes another sample then, or can't make one alone.

    latents: (n, latent), of which up to two are tried
    """

    def tried(few: Tensor) -> Tensor:
        noise.seed_global(0)
        samples: Tensor = generator(few)
        if samples.shape[0] != len(few):
            raise ValueError("expected a sample for each latent")
        return samples[-1].float()

    try:
        with kept(), buffers_kept([generator]):
            noise.seed_global(0)
            fresh = states()
            alone = tried(latents[:1].clone())
            size = min(BATCH, 1 << max(LARGEST // alone.numel(), 1).bit_length() - 1)
            if states() != fresh:
                return None
            if min(size, len(latents)) > 1:
                beside = tried(latents[:2].flip(0))
                if (beside - alone).norm() > ROUNDING * alone.norm():
                    return None
    except Exception:  # what is wrong with whole blocks too is raised there
        return None
    return size


def _padded(rows: Tensor, count: int, ranks: Ranks) -> Tensor:
    """Return as many rows as the other processes have, as gathering needs."""
    if ranks.count == 1:
        return rows
    padded = rows.new_zeros(count, *rows.shape[1:])
    padded[: len(rows)] = rows[:count]
    return padded


@torch.no_grad()
def shape_of_samples(generator: nn.Module) -> tuple[int, ...]:
    """Return the shape of one sample of a generator in eval mode, of which it makes but one."""
    device = next(generator.parameters()).device
    with kept():
        made: Tensor = generator(torch.zeros(1, latent_size(generator), device=device))
    return tuple(made.shape[1:])


def _latents(
    generator: nn.Module, seed: int, stream: str, numbers: Iterable[int]
) -> Iterator[Tensor]:
    device = next(generator.parameters()).device
    source = Stream(seed, f"latents/{stream}", device)
    for number in numbers:
        yield torch.randn(BATCH, latent_size(generator), generator=source.at(number), device=device)
