"""Whether networks fit a run: their mode, what they can take, and what the generator makes."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.errors import GancoreError, InputError
from gancore.text import shown


class ModeWarning(UserWarning):
    """A network came in eval mode, and trains in training mode."""


def into_training(network: nn.Module, side: str) -> None:
    """Put a network that is in eval mode as a whole into training mode, and say so.

    Parts in eval mode below a root that trains are frozen on purpose, and stay. Raises InputError
    for one on the meta device, where nothing has a value.
    """
    if any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers())):
        raise InputError(
            f"the {side} is on the meta device, where parameters have no values: build it on the "
            "CPU, or call to_empty() and initialize it"
        )
    if network.training:
        return
    network.train()
    warnings.warn(
        f"the {side} came in eval mode, where running statistics stand still and dropout is off, "
        f"and was put into training mode; for parts that are to stay frozen, call {side}.train() "
        "and then eval() on each of them first",
        ModeWarning,
        stacklevel=5,  # the learner, Trainer, and what that is wrapped in
    )


def refuse_other_samples(fake: object, noise: Tensor, data: Dataset, when: str = "") -> None:
    """Raise InputError where what a generator made of noise (B, latent) is no batch like the data.

    That is, a floating-point tensor (B, C, H, W), or (B, d) for points.

    when: in which mode, for the message
    """
    wanted = (len(noise), *data.shape)
    if not isinstance(fake, Tensor):
        made = f"a {type(fake).__name__}"
    elif not fake.is_floating_point():
        made = f"a {fake.dtype} tensor"
    elif fake.device != noise.device:
        made = f"a tensor on {fake.device}"
    elif fake.shape != wanted:
        made = f"shape {tuple(fake.shape)}"
    else:
        return
    remedy = "give both one size, and let the generator return samples alone"
    if isinstance(fake, Tensor) and fake.dim() == 4 and len(wanted) == 4:
        for one, other in ((fake, wanted), (torch.empty(wanted, device="meta"), fake.shape)):
            if one.movedim(-1, 1).shape == other:
                which = "the generator's" if one is fake else "the data's"
                remedy = f"{which} have their channels last: x.permute(0, 3, 1, 2) puts them first"
    raise InputError(
        f"the generator makes {made} of noise {tuple(noise.shape)}{when}, and samples like those "
        f"of {data.name!r} are a floating-point tensor {wanted}: {remedy}"
    )


@contextmanager
def fitting(network: nn.Module, side: str, given: Tensor) -> Iterator[None]:
    """Turn what a network raises at the samples or noise that it is given into an InputError.

    What gancore raises itself passes, and so does what tells of memory.
    """
    try:
        yield
    except GancoreError:
        raise
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise
        reason = shown(" ".join(str(error).split()), 300)
        raise InputError(
            f"the {side} can't take {'noise' if side == 'generator' else 'samples'}, "
            f"{given.dtype} {tuple(given.shape)} on {given.device}: {type(error).__name__}: "
            f"{reason}{_place(error)}. {_remedy(network, side, given, error)}"
        ) from error


def _place(error: Exception) -> str:
    """Return the line of the network's own code in which an error was raised, if there is one."""
    others = [Path(torch.__file__).parent, Path(__file__).parents[1]]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(other) for other in others):
            return f" ({path.name}, line {frame.lineno})"
    return ""


def _remedy(network: nn.Module, side: str, given: Tensor, error: Exception) -> str:
    tensors = [*network.parameters(), *network.buffers()]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()}
    if other := dtypes - {given.dtype}:
        return f"It has parameters of {other.pop()}, and a run is float32: call {side}.float()"
    if "device" in str(error):
        return "Register tensors of its own as buffers, so that they move with it"
    if "view size is not compatible" in str(error):
        return "Use reshape, not view: images on CUDA, and what is permuted, can't be viewed so"
    if not isinstance(error, RuntimeError):
        return "It is called with that alone: let a module around it give it what else it takes"
    if side == "critic":
        return "Build it for samples of that shape, the data's"
    size = given.shape[1]
    with suppress(Exception), torch.no_grad():
        network(given[:, :, None, None])
        unflatten = f"nn.Unflatten(1, ({size}, 1, 1))"
        return (
            f"It takes noise (B, {size}, 1, 1): give nn.Sequential({unflatten}, generator), with "
            f"the attribute latent = {size}"
        )
    return f"Its attribute `latent` is {size}: make it the length of the noise that it takes"
