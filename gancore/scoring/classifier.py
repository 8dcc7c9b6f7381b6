"""Small classifiers as feature extractors for torch-fidelity: what `digits` and `fashion` share.

Scores taken with one of them compare with each other only, never with scores taken with another
extractor.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import silu
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from gancore.errors import ScoreError
from gancore.text import shown


class ClassifierNet(nn.Module):
    """A small convolutional classifier: (B, C, H, W) → 64 features and 10 logits.

    The images are uint8 or floating-point with values 0..255; the network scales them itself.

    The features are the last hidden layer *before* its activation. A ReLU would pile values up at
    zero and leave singular covariances; before the activation each feature is smooth and closer
    to the Gaussian that FID takes it for. They are standardized without learned scale, with the
    mean and variance of the training images fixed in the weights: each feature has mean 0 and
    variance 1 over these, so FID is in units of that variance (64 in total).

    Args:
        convs: Channels in and out, kernel size and stride of each convolution, from the first on.
        inputs: The length of the vectors (B, inputs) that the last one's maps make.
    """

    def __init__(self, *convs: tuple[int, int, int, int], inputs: int) -> None:
        super().__init__()
        layers = [
            (nn.Conv2d(before, after, size, stride, padding=1), nn.SiLU())
            for before, after, size, stride in convs
        ]
        self.conv = nn.Sequential(*chain.from_iterable(layers), nn.Flatten())
        self.embed = nn.Linear(inputs, 64)
        self.standardize = nn.BatchNorm1d(64, affine=False)
        self.classify = nn.Linear(64, 10)

    def embedding(self, images: Tensor) -> Tensor:
        """Return the features (B, 64) of images (B, C, H, W) in 0..255, not standardized yet."""
        scaled = images.to(self.embed.weight.dtype) / 127.5 - 1
        embedded: Tensor = self.embed(self.conv(scaled))
        return embedded

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, 64) and the logits (B, 10) of images (B, C, H, W) in 0..255."""
        features: Tensor = self.standardize(self.embedding(images))
        return features, self.classify(silu(features))


class ClassifierExtractor(FeatureExtractorBase):  # type: ignore[misc]  # torch-fidelity is untyped
    """A `ClassifierNet` as a torch-fidelity 0.4 feature extractor, features "64" and "logits".

    A subclass names its network, the shape of its images and its weights. It takes uint8 images of
    shape (B, *sample_shape) with values 0..255. FID, KID and precision/recall use "64", IS uses
    "logits".

    Args:
        name: The name under which the class is registered with torch-fidelity.
        features_list: The features wanted, in the order in which to return them.
        feature_extractor_weights_path: A safetensors file of such a network; the packaged one if
            None.
        feature_extractor_internal_dtype: None or "float32", the only one there is.
        **kwargs: torch-fidelity passes all of its settings; the others are not used.

    Raises:
        ScoreError: For a file that does not hold the weights of such a network.
        ValueError: For another dtype, or unknown features.
        FileNotFoundError: Where there is no such weights file.
    """

    NET: ClassVar[type[nn.Module]]
    DEFAULT_WEIGHTS: ClassVar[Path]
    feature_dim: ClassVar[int] = 64
    sample_shape: ClassVar[tuple[int, int, int]]

    def __init__(
        self,
        name: str,
        features_list: list[str] | tuple[str, ...],
        feature_extractor_weights_path: str | Path | None = None,
        feature_extractor_internal_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name, features_list)
        if feature_extractor_internal_dtype not in (None, "float32"):
            raise ValueError(f"{name} computes in float32, not {feature_extractor_internal_dtype}")
        path = self.weights_path(feature_extractor_weights_path)
        self.net = self.NET()
        try:
            # assign: the weights are real even where this is built under torch.device("meta")
            weights = load_file(path, device="cpu")
            self.net.load_state_dict(weights, assign=True)
            _refuse_no_numbers(weights)
        except (SafetensorError, RuntimeError, ValueError) as error:
            reason = shown(" ".join(str(error).split()), 1000)
            raise ScoreError(
                f"{shown(str(path), 4096)} does not hold the weights of a {self.NET.__name__}: "
                f"{reason}. Leave score.weights out for the packaged ones"
            ) from None
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def weights_path(cls, given: str | Path | None = None) -> Path:
        """Return the weights file used for a given `feature_extractor_weights_path`."""
        return cls.DEFAULT_WEIGHTS if given is None else Path(given)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Return the names of the features: "64" is (B, 64), "logits" is (B, 10), both float32."""
        return "64", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the feature for "isc", "fid", "kid" or "prc"; KeyError for another metric."""
        return {"isc": "logits", "fid": "64", "kid": "64", "prc": "64"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Return False: compiling so small a network costs more than it saves."""
        return False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        """Return the requested features of uint8 images (B, C, H, W), in `features_list`'s order.

        Raises:
            ValueError: For anything but a uint8 tensor of that shape.
        """
        if not isinstance(input, Tensor):
            raise ValueError(f"{self.name} takes a tensor, not {type(input).__name__}")
        if input.dtype != torch.uint8 or input.dim() != 4 or input.shape[1:] != self.sample_shape:
            raise ValueError(
                f"{self.name} takes uint8 images of shape "
                f"(B, {', '.join(map(str, self.sample_shape))}), "
                f"not {str(input.dtype).removeprefix('torch.')} of shape {tuple(input.shape)}"
            )
        features, logits = self.net(input)
        made = {"64": features, "logits": logits}
        return tuple(made[name] for name in self.features_list)


def _refuse_no_numbers(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError for weights of the right shapes that no float32 features come of."""
    for name, tensor in weights.items():
        if tensor.dtype != torch.float32 and not name.endswith("num_batches_tracked"):
            raise ValueError(f"{name} is {tensor.dtype}, expected torch.float32")
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds inf or nan")
