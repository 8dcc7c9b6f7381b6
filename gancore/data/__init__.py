"""Data sets: one tensor each, moved to the device once; batches are index selections there.

A data set of another package is a function with keyword options that returns a `Dataset`,
named by an entry point of the group `gancore.datasets`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from gancore.errors import DataError

__all__ = ["Dataset", "Truth", "to_uint8", "to_unit"]


@dataclass(frozen=True, eq=False)
class Truth:
    """What the points of a toy scatter around, which makes exact scores possible.

    points     float32 (K, d): the centres of the modes, or points that lie densely on a curve
    deviation  the standard deviation of each coordinate around them
    modes      whether each row is a mode, to be covered
    """

    points: Tensor
    deviation: float
    modes: bool = True


@dataclass(frozen=True, eq=False)
class Dataset:
    """Real samples, all of them, in one tensor.

    name     what reports call it
    samples  uint8 (N, C, H, W) images, or float32 (N, d) points
    labels   int64 (N,), or None
    split    which part of the published data this is
    truth    what points scatter around, where that is known
    about    where they are from, and what was passed over there; a run says so
    doubts   lines about what may be a mistake; a run warns of each

    Raises DataError for any other dtype or shape, and for an empty one.
    """

    name: str
    samples: Tensor
    labels: Tensor | None = None
    split: str = "train"
    truth: Truth | None = None
    about: str = ""
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check dtypes and shapes, and that points are finite."""
        if not isinstance(self.samples, Tensor):
            raise DataError(
                f"data set {self.name!r} is a {type(self.samples).__name__}, expected a tensor: "
                "torch.as_tensor makes one of arrays and lists"
            )
        form = f"{str(self.samples.dtype).removeprefix('torch.')} {tuple(self.samples.shape)}"
        if (self.samples.dtype, self.samples.dim()) not in ((torch.uint8, 4), (torch.float32, 2)):
            raise DataError(
                f"data set {self.name!r} is {form}: expected uint8 (N, C, H, W) images or "
                f"float32 (N, d) points{_remedy(self.samples)}"
            )
        if 0 in self.samples.shape:
            raise DataError(f"data set {self.name!r} is empty: {form}")
        self._refuse_broken_rows()
        if self.labels is not None and (
            self.labels.dtype != torch.int64 or self.labels.shape != (len(self),)
        ):
            raise DataError(f"labels of data set {self.name!r}: expected int64 ({len(self)},)")

    def _refuse_broken_rows(self) -> None:
        if self.is_images or self.samples.is_meta:
            return
        rows = (~self.samples.isfinite().all(1)).nonzero().flatten().tolist()
        if rows:
            more = f" and {len(rows) - 3:,} more" if len(rows) > 3 else ""
            raise DataError(
                f"data set {self.name!r}: of its {len(self):,} points those at "
                f"{', '.join(map(str, rows[:3]))}{more}, counted from 0, hold nan or inf: leave "
                "them out, or fill them in"
            )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W) or (d,)."""
        return tuple(self.samples.shape[1:])

    @property
    def is_images(self) -> bool:
        """Whether the samples are images; points otherwise."""
        return self.samples.dtype == torch.uint8

    def __str__(self) -> str:
        """Return how many samples there are, of which shape, and where they are from."""
        size = "×".join(map(str, self.shape))
        what = f"images of {size}" if self.is_images else f"points of {size} coordinates"
        return f"{len(self):,} {what}{self.about and f', {self.about}'}"

    @cached_property
    def sha256(self) -> str:
        """A hash of the samples' bytes, dtype and shape."""
        samples = self.samples.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{samples.dtype} {tuple(samples.shape)}".encode())
        digest.update(samples.numpy().data)
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides updates and scores: the samples, and what they scatter around.

        Labels, the name and the split do not.
        """
        if self.truth is None:
            return self.sha256
        points = Dataset("truth", self.truth.points.float()).sha256
        about = (self.sha256, points, float(self.truth.deviation), bool(self.truth.modes))
        return hashlib.sha256(repr(about).encode()).hexdigest()

    def to(self, device: torch.device | str) -> Dataset:
        """Return the data set on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        moved = replace(self, samples=self.samples.detach().to(device), labels=labels)
        hashes = ("sha256", "fingerprint")  # that were made before stay, as samples are the same
        vars(moved).update({name: vars(self)[name] for name in hashes if name in vars(self)})
        return moved

    def batch(self, index: Tensor, *, mirror: Tensor | None = None) -> Tensor:
        """Return the samples at index (B,) as float32 (B, *), contiguous, images in [−1, 1].

        mirror: bool (B,), which images to flip left to right.
        """
        samples = self.samples[index.to(self.samples.device, non_blocking=True)]
        if mirror is not None:
            samples = torch.where(mirror[:, None, None, None], samples.flip(-1), samples)
        return (to_unit(samples) if self.is_images else samples).contiguous()


def _remedy(samples: Tensor) -> str:
    """Return what makes samples of what was given, to be said after what was expected."""
    if samples.dim() == 4 and samples.is_floating_point():
        broken = "" if bool(samples.isfinite().all()) else ", and these hold nan or inf"
        return f"; gancore.data.to_uint8 makes the first of floats in [−1, 1]{broken}"
    return "; x.float() makes the second" if samples.dim() == 2 else ""


def to_unit(images: Tensor) -> Tensor:
    """Return uint8 images 0 … 255 as float32 in [−1, 1]."""
    return images.float().div_(127.5).sub_(1)


def to_uint8(images: Tensor) -> Tensor:
    """Return images in [−1, 1] as uint8: rounded and clamped, never truncated."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
