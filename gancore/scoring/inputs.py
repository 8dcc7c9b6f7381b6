"""What a metric is computed from."""

from __future__ import annotations

import zlib
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gancore.data import Dataset
from gancore.errors import ContractError

T = TypeVar("T")


class Statistics(NamedTuple):
    """The mean (D,) and covariance (D, D) of features, in float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


class Inputs:
    """What a metric is computed from, on the CPU; it leaves all of it unchanged.

    samples    generated ones: uint8 (N, C, H, W) images, or float32 (N, d) points
    reference  the real data, all of them: `reference.samples` are like the generated ones
    seed       the run's, for what a metric draws

    The rest is there if the metric's `needs` name it, and ContractError else.
    """

    def __init__(
        self,
        samples: Tensor,
        reference: Dataset,
        *,
        seed: int = 0,
        features: Tensor | None = None,
        logits: Tensor | None = None,
        reference_features: Tensor | None = None,
        reference_statistics: Statistics | None = None,
    ) -> None:
        self.samples, self.reference, self.seed = samples, reference, seed
        self._features, self._logits = features, logits
        self._reference_features = reference_features
        self._reference_statistics = reference_statistics

    @property
    def features(self) -> Tensor:
        """The extractor's features (N, D) of the generated images, float32."""
        return _given(self._features, "features")

    @property
    def logits(self) -> Tensor:
        """The extractor's logits (N, K) of the generated images, float32."""
        return _given(self._logits, "logits")

    @property
    def reference_features(self) -> Tensor:
        """The extractor's features (M, D) of the real images, float32."""
        return _given(self._reference_features, "reference_features")

    @property
    def reference_statistics(self) -> Statistics:
        """The mean and covariance of the features of the real images."""
        return _given(self._reference_statistics, "reference_statistics")

    def tensors(self) -> list[Tensor]:
        """Return its tensors, whichever there are."""
        tensors = (
            *(self.samples, self.reference.samples, self._features, self._logits),
            self._reference_features,
        )
        return [tensor for tensor in tensors if tensor is not None]

    def checksums(self) -> list[int]:
        """Return checksums of its tensors and arrays, and how often each tensor was written to."""
        arrays = [tensor.numpy() for tensor in self.tensors()]
        arrays += self._reference_statistics or ()
        written = [tensor._version for tensor in self.tensors()]
        return written + [zlib.crc32(np.ascontiguousarray(array).data) for array in arrays]


def _given(part: T | None, name: str) -> T:
    if part is None:
        raise ContractError(f"a metric asks for {name}, which its `needs` do not name: add it")
    return part
