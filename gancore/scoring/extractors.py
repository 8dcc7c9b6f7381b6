"""Feature extractors: what turns images into the features that scores compare.

`inception-v3-compat` with its canonical weights is what the field calls FID. Any other comes by
an entry point of the group `gancore.extractors`: a torch-fidelity FeatureExtractorBase with the
class attributes `feature_dim`, `sample_shape` (None in it: any size) and `DEFAULT_WEIGHTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gancore import entrypoints
from gancore.data.fetch import fetch
from gancore.errors import DataError, MissingError, ScoreError
from gancore.files.reading import opened, sha256, unreadable
from gancore.scoring.protocol import INCEPTION
from gancore.text import close_to, did_you_mean, shown

LARGEST = 16 << 30
"""Bytes of a weights file; Inception's has ninety million."""


@dataclass(frozen=True)
class Extractor:
    """A feature extractor that torch-fidelity knows.

    name          what recipes and reports call it
    registered    what torch-fidelity calls it
    feature_dim   the length of the features that FID, KID and precision/recall use
    sample_shape  the (C, H, W) that it takes; None stands for any
    weights       its weights file
    """

    name: str
    registered: str
    feature_dim: int
    sample_shape: tuple[int | None, int | None, int | None]
    weights: Path

    def weights_sha256(self) -> str:
        """Return the hash of the weights file."""
        return weights_sha256(self.weights)


def weights_sha256(path: Path) -> str:
    """Return the hash of a weights file. Raises ScoreError for what can't be read."""
    try:
        return sha256(path, LARGEST)
    except OSError as error:
        raise ScoreError(f"weights of the extractor: {unreadable(error, path)}") from error


def find_extractor(name: str, weights: str | None = None) -> Extractor:
    """Find the feature extractor `name`, and tell torch-fidelity of it; no weights are read.

    Raises MissingError for an unknown name, ScoreError where there is no such file of weights.
    """
    if weights is not None:
        _refuse_unreadable(Path(weights))
    if name == INCEPTION:
        return Extractor(
            name, name, 2048, (3, None, None), Path(weights) if weights else inception_path()
        )
    names = {point.name for point in entrypoints.find("extractor")}
    if name not in names:
        known = {*names, INCEPTION}
        raise MissingError(
            f"score.extractor: there is no {name!r}.{did_you_mean(name, known)}",
            close=bool(close_to(name, known)),
        )
    cls = entrypoints.load(entrypoints.get("extractor", name))
    registered = f"gancore-{name}"
    _register(registered, cls)
    return Extractor(
        name, registered, cls.feature_dim, cls.sample_shape, Path(weights or cls.DEFAULT_WEIGHTS)
    )


def extractor(name: str, weights: str | None = None) -> Extractor:
    """Find the feature extractor `name`, its weights made sure of, and tell torch-fidelity of it.

    Raises MissingError for an unknown name, ScoreError for weights that can't be had.
    """
    chosen = find_extractor(name, weights)
    if name == INCEPTION:
        if weights is None:
            _downloaded_inception()
        _refuse_code(chosen.weights)
    return chosen


def _refuse_unreadable(path: Path) -> None:
    """Raise ScoreError for weights that are no file: others open it by its name."""
    try:
        opened(path).close()
    except FileNotFoundError as error:
        raise ScoreError(f"score.weights: there is no file {shown(str(path), 4096)}") from error
    except OSError as error:
        raise ScoreError(f"score.weights: {unreadable(error, path)}") from error


def _register(registered: str, cls: type) -> None:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    if registered not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(registered, cls)


def _downloaded_inception() -> Path:
    """Return where the canonical weights are, fetched the first time."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = inception_path()
    if not path.is_file():
        name_it = "name it by --set score.weights=PATH"
        try:
            fetch([URL_INCEPTION_V3], path, "6726825d", "sha256", otherwise=name_it)
        except DataError as error:
            raise ScoreError(f"the Inception weights: {error}") from error
    return path


def inception_path() -> Path:
    """Return where torch.hub keeps, or would keep, the canonical Inception weights."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)


def _refuse_code(path: Path) -> None:
    """Refuse a weights file that is more than tensors; torch-fidelity would unpickle anything."""
    import torch

    try:
        file = opened(path)
    except OSError as error:
        raise ScoreError(f"the Inception weights: {unreadable(error, path)}") from error
    try:
        with file:
            torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # torch raises anything for a file that is something else
        reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 500)
        raise ScoreError(
            f"{shown(str(path), 4096)} is no file of Inception weights: {reason}. Name another by "
            "score.weights; one in the cache, delete: it is fetched anew"
        ) from error
