"""Draws: the latents and the real samples of one network's updates."""

from __future__ import annotations

import torch
from torch import Tensor

from gancore.data import Dataset
from gancore.distributed.ranks import Ranks
from gancore.isolation.randomness import DataOrder, Stream
from gancore.recipe import Settings
from gancore.training.device import arranged
from gancore.training.plan import Side


class Draws:
    """What the updates of one network draw: functions of the seed, the network and the update.

    size: how many samples each process has of a batch
    """

    def __init__(
        self, side: Side, data: Dataset, settings: Settings, ranks: Ranks, size: int
    ) -> None:
        self.size = size
        self._whole = size * ranks.count
        self._data, self._ranks = data, ranks
        self._flip = settings.data.flip
        self._device = data.samples.device
        seed = settings.train.seed
        self._order = DataOrder(seed, f"order/{side}", len(data), self._device)
        self._latents = Stream(seed, f"latents/{side}", self._device)
        self._mirrors = Stream(seed, f"mirror/{side}", self._device)

    def latents(self, update: int, length: int) -> Tensor:
        """Return this process's normal noise (size, length) of an update."""
        generator = self._latents.at(update)
        noise = torch.randn(self._whole, length, generator=generator, device=self._device)
        return self._ranks.part(noise)

    def real(self, update: int) -> Tensor:
        """Return this process's real samples (size, *) of an update, half of them mirrored if
        `data.flip` is on.
        """
        mirror = None
        if self._flip:
            generator = self._mirrors.at(update)
            numbers = torch.rand(self._whole, generator=generator, device=self._device)
            mirror = self._ranks.part(numbers) < 0.5
        index = self._ranks.part(self._order.take(update * self._whole, self._whole))
        return arranged(self._data.batch(index, mirror=mirror))
