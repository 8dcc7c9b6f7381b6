"""Parameters that networks get late: in their first forward pass, or after the Trainer got them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gancore.data import Dataset
from gancore.errors import ContractError, InputError
from gancore.isolation.randomness import Stream
from gancore.scoring.sampling import latent_size
from gancore.text import shown


def materialize_generator(generator: nn.Module, size: int, seed: int) -> None:
    """Give what is lazy in a generator its shapes and initial values, by `size` latents.

    The values are drawn from a stream of their own, whatever else draws. The pass is one in eval
    mode, so that statistics stay as they are; modes are left alone. Where nothing is lazy nothing
    is done. Raises InputError where the pass fails, or leaves a parameter out.
    """
    if _lazy(generator):
        _materialize(generator, "generator", torch.ones(size, latent_size(generator)), seed)


def materialize_critic(critic: nn.Module, data: Dataset, size: int, seed: int) -> None:
    """Give what is lazy in a critic its shapes and initial values, by `size` real samples.

    Otherwise as `materialize_generator`.
    """
    if _lazy(critic):
        index = torch.arange(size, device=data.samples.device) % len(data)
        _materialize(critic, "critic", data.batch(index), seed)


def _materialize(module: nn.Module, what: str, batch: Tensor, seed: int) -> None:
    remedy = "Pass it a batch of data before the Trainer gets it, or give its layers their sizes"
    modes = {part: part.training for part in module.modules()}
    device = next(iter([*module.parameters(), *module.buffers()])).device
    Stream(seed, f"init/lazy/{what}", device).seed_global(0)
    try:
        with torch.no_grad():
            module.eval()(batch.to(device))
    except Exception as error:
        reason = shown(" ".join(str(error).split()), 200)
        raise InputError(
            f"the {what} is lazy, and its first pass, of {tuple(batch.shape)} in eval mode, "
            f"failed: {type(error).__name__}: {reason}. {remedy}"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
    if names := _lazy(module):
        raise InputError(
            f"the {what} is lazy, and its first pass, in eval mode, left {names[0]} out. {remedy}"
        )


def _lazy(module: nn.Module) -> list[str]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in tensors if is_lazy(tensor)]


class Settled:
    """The parameters of networks when their optimizers are made: none that comes later is trained.

    Nor is it averaged, or the same in each run of a seed.
    """

    def __init__(self, **networks: nn.Module) -> None:
        self._networks = networks
        self._parameters = [one for network in networks.values() for one in network.parameters()]
        self._is_checked = False

    def check_once(self) -> None:
        """Check at the first call alone. Raises ContractError."""
        if not self._is_checked:
            self.check()
            self._is_checked = True

    def check(self) -> None:
        """Raise ContractError for a parameter that was not there before."""
        known = {id(parameter) for parameter in self._parameters}
        for what, network in self._networks.items():
            for name, parameter in network.named_parameters():
                if id(parameter) not in known:
                    raise ContractError(
                        f"the {what}'s {name} was made after the Trainer had got it, so it would "
                        f"not be trained. Make it in __init__, or pass the {what} a batch of data "
                        "before the Trainer gets it"
                    )
