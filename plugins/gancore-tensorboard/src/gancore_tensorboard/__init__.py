"""The records and sample grids of a run in TensorBoard."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from gancore import hookimpl, plugin

__all__ = ["TensorBoard"]


@plugin
class TensorBoard:
    """Write every number of every record, and every sample grid, at its generator step.

    folder: where the event files go; `tensorboard` in the run's own folder if empty.
    """

    folder: str = ""
    _writer: SummaryWriter | None = field(default=None, init=False, repr=False)

    @hookimpl
    def start(self, folder: Path, step: int) -> None:
        """Open the board; hide what an interrupted run wrote after the step it goes on from."""
        self._writer = SummaryWriter(
            self.folder or str(folder / "tensorboard"), purge_step=step + 1
        )
        weakref.finalize(self, self._writer.close)

    @hookimpl
    def log(self, record: Mapping[str, Any]) -> None:
        """Write a record, and have it on disk."""
        writer = self._opened()
        for key, value in record.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                writer.add_scalar(key, value, record["step"])
        writer.flush()

    @hookimpl
    def sample(self, samples: Tensor, step: int) -> None:
        """Write a grid of images, grey or colour; points are left out."""
        if samples.dim() == 4 and samples.shape[1] in (1, 3):
            self._opened().add_image("samples", make_grid(samples), step)
            self._opened().flush()

    def _opened(self) -> SummaryWriter:
        if self._writer is None:
            raise RuntimeError("the board is not open: call start(folder, step) first")
        return self._writer
