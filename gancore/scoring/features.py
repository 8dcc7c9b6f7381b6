"""Features of images; those of the reference data are computed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from gancore.data import Dataset
from gancore.data.cache import Cache
from gancore.isolation.randomness import Stream
from gancore.provenance.machine import kind_of_machine
from gancore.scoring.extractors import Extractor
from gancore.scoring.sampling import Progress

BATCH = 64
"""Images a batch: part of what the last bits of a score depend on, so it is fixed."""


class _Images(torch.utils.data.Dataset[Tensor]):
    """uint8 images in the channels that the extractor takes; tells how many were asked for."""

    def __init__(self, images: Tensor, repeat: int, seen: Callable[[int, int], None]) -> None:
        self._images, self._repeat, self._seen = images, repeat, seen

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        if (index + 1) % BATCH == 0 or index + 1 == len(self):
            self._seen(index + 1, len(self))
        return self._images[index].repeat(self._repeat, 1, 1)


class Features:
    """Runs images through an extractor: once each, for all the metrics that want them."""

    def __init__(
        self,
        chosen: Extractor,
        metrics: tuple[str, ...],
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self._chosen, self._device, self._progress = chosen, device, progress
        self._cuda = device.type == "cuda"
        layer_of = FEATURE_EXTRACTORS_REGISTRY[
            chosen.registered
        ].get_default_feature_layer_for_metric
        kinds = {"isc": "logits", "fid": "features", "kid": "features", "prc": "features"}
        self._layers = {kinds[metric]: layer_of(metric) for metric in metrics}
        Stream(0, f"build/extractor {chosen.name}").seed_global(0)
        self._network = create_feature_extractor(
            chosen.registered,
            sorted(self._layers.values()),
            cuda=self._cuda,
            feature_extractor_weights_path=str(chosen.weights),
            verbose=False,
        )

    def __call__(self, images: Tensor, what: str) -> dict[str, Tensor]:
        """Return the wanted of "logits" (N, K) and "features" (N, D) of uint8 (N, C, H, W)."""
        grey_for_colour = (self._chosen.sample_shape[0], images.shape[1]) == (3, 1)

        def seen(done: int, total: int) -> None:
            if self._progress:
                self._progress(what, done, total)

        found = get_featuresdict_from_dataset(
            _Images(images.cpu(), 3 if grey_for_colour else 1, seen),
            self._network,
            BATCH,
            self._cuda,
            save_cpu_ram=True,  # that is: no loader processes
            verbose=False,
        )
        return {kind: found[layer] for kind, layer in self._layers.items()}


class Reference:
    """Features of a data set and their mean and covariance, kept by everything that defines them.

    data     the real images
    chosen   the extractor; its weights' hash is part of the key
    compute  makes features (N, D) of images, where they are not at hand
    keep     whether to keep the features of all images too, not only mean and covariance
    about    whatever else the last bits depend on, such as the batch size and the device
    """

    def __init__(
        self,
        data: Dataset,
        chosen: Extractor,
        compute: Callable[[Tensor], Tensor],
        *,
        keep: bool,
        about: dict[str, Any],
    ) -> None:
        self._data, self._compute, self._keep = data, compute, keep
        self._slot = json.dumps([data.name, data.split, chosen.name])
        self._key = json.dumps(
            {
                "data": data.sha256,
                "count": len(data),
                "extractor": chosen.name,
                "weights": chosen.weights_sha256(),
                **kind_of_machine(),
                "threads": torch.get_num_threads(),
                "versions": [version("torch"), version("torch-fidelity")],
                **about,
            },
            sort_keys=True,
        )

    @cached_property
    def features(self) -> Tensor:
        """The features of all samples: (N, D)."""
        if not self._keep:
            return self._compute(self._data.samples)
        kept = self._kept("features", lambda: {"features": self._compute(self._data.samples)})
        return kept["features"]

    @property
    def statistics(self) -> dict[str, Any]:
        """Their mean (D,) and covariance (D, D): torch-fidelity's "mu" and "sigma", in NumPy."""

        def make() -> dict[str, Tensor]:
            found = fid_features_to_statistics(self.features)
            return {name: torch.from_numpy(found[name]) for name in ("mu", "sigma")}

        return {name: tensor.numpy() for name, tensor in self._kept("statistics", make).items()}

    def _kept(self, kind: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        cache = Cache(kind, self._slot, self._key)
        found = cache.load()
        if found is None:
            found = make()
            cache.save(found)
        return found
