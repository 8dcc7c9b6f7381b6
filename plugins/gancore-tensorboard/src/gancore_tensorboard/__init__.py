"""The records and sample grids of a run in TensorBoard."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import field
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

from gancore import hookimpl, plugin

__all__ = ["TensorBoard"]


@plugin
class TensorBoard:
    """Write every number of every record, and every sample grid, at its generator step.

    folder: where the event files go, in a folder of each run's own, which has its name and, if
        that is taken, a number; `tensorboard` in the run's own folder if empty.
    """

    folder: str = ""
    _writer: SummaryWriter | None = field(default=None, init=False, repr=False)
    _name: str = field(default="", init=False, repr=False)
    """Of the folder within `folder`: what one holds is hidden by whatever else writes there."""

    @hookimpl
    def start(self, folder: Path, step: int) -> None:
        """Open the board; hide what an interrupted run wrote after the step it goes on from."""
        place = folder / "tensorboard"
        if self.folder:
            self._name = self._name or _taken(Path(self.folder), folder.absolute().name)
            place = Path(self.folder) / self._name
        self._writer = SummaryWriter(str(place), purge_step=step + 1)
        weakref.finalize(self, self._writer.close)

    def state_dict(self) -> dict[str, str]:
        """Return where in `folder` this run is, for it to go on there."""
        return {"name": self._name} if self._name else {}

    def load_state_dict(self, state: Mapping[str, str]) -> None:
        """Go on where `state_dict` was, within `folder` only."""
        name = str(state.get("name", ""))
        self._name = name if name == Path(name).name != ".." else ""

    @hookimpl
    def log(self, record: Mapping[str, float]) -> None:
        """Write each number of a record, and have it on disk."""
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


def _taken(folder: Path, name: str) -> str:
    """Make a folder of this name, or of it and the first number that is free; return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    while True:
        own = next(names)
        with suppress(FileExistsError):
            (folder / own).mkdir()
            return own
