"""Features of images; those of the reference data are computed once and kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from importlib.metadata import version

import torch
from torch import Tensor
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor, get_featuresdict_from_dataset

from gancore.data import Dataset
from gancore.data.cache import Cache
from gancore.isolation.randomness import Stream
from gancore.provenance.machine import kind_of_machine
from gancore.scoring.extractors import Extractor
from gancore.scoring.fidelity import statistics
from gancore.scoring.inputs import Statistics
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
    """Runs images through an extractor: once each, for all the metrics that want them.

    kinds     of "features" and "logits", which to make
    progress  called as images go through
    """

    def __init__(
        self,
        chosen: Extractor,
        kinds: Collection[str],
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self._chosen, self._device, self._progress = chosen, device, progress
        self._cuda = device.type == "cuda"
        layer_of = FEATURE_EXTRACTORS_REGISTRY[
            chosen.registered
        ].get_default_feature_layer_for_metric
        metrics = {"logits": "isc", "features": "fid"}  # for which torch-fidelity takes which layer
        self._layers = {kind: layer_of(metrics[kind]) for kind in sorted(kinds)}
        Stream(0, f"build/extractor {chosen.name}").seed_global(0)
        self._network = create_feature_extractor(
            chosen.registered,
            sorted(self._layers.values()),
            cuda=self._cuda,
            feature_extractor_weights_path=str(chosen.weights),
            verbose=False,
        )

    def __call__(self, images: Tensor, what: str) -> dict[str, Tensor]:
        """Return "features" (N, D) and "logits" (N, K), as asked for, of uint8 (N, C, H, W)."""
        grey_for_colour = (self._chosen.sample_shape[0], images.shape[1]) == (3, 1)

        def seen(done: int, total: int) -> None:
            if self._progress:
                self._progress(what, done, total)

        made = get_featuresdict_from_dataset(
            _Images(images.cpu(), 3 if grey_for_colour else 1, seen),
            self._network,
            BATCH,
            self._cuda,
            save_cpu_ram=True,  # that is: no loader processes
            verbose=False,
        )
        return {kind: made[layer] for kind, layer in self._layers.items()}


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
        about: Mapping[str, str | int],
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
    def statistics(self) -> Statistics:
        """Their mean (D,) and covariance (D, D)."""

        def make() -> dict[str, Tensor]:
            mean, covariance = map(torch.from_numpy, statistics(self.features))
            return {"mu": mean, "sigma": covariance}

        kept = self._kept("statistics", make)
        return Statistics(kept["mu"].numpy(), kept["sigma"].numpy())

    def _kept(self, kind: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        cache = Cache(kind, self._slot, self._key)
        tensors = cache.load()
        if tensors is None:
            tensors = make()
            cache.save(tensors)
        return tensors
