"""The `fashion` feature extractor: a small classifier of Fashion-MNIST that serves torch-fidelity.

It gives FID, IS, KID and precision/recall of 32×32 Fashion-MNIST at seconds on a CPU.
`tests/extractors/fashion_train.py` makes the weights, and records in them how. Scores taken with it
compare with each other only, never with scores taken with Inception.
"""

from pathlib import Path
from typing import ClassVar

from gancore.scoring.classifier import ClassifierExtractor, ClassifierNet


class FashionNet(ClassifierNet):
    """A small convolutional classifier: (B, 1, 32, 32) → 64 features and 10 logits."""

    def __init__(self) -> None:
        super().__init__((1, 16, 4, 2), (16, 32, 4, 2), (32, 64, 4, 2), inputs=64 * 4 * 4)


class FashionExtractor(ClassifierExtractor):
    """`FashionNet` as a torch-fidelity 0.4 feature extractor, features "64" and "logits".

    It takes uint8 images of shape (B, 1, 32, 32) with values 0..255, the data set's default size.
    Arguments and errors are those of `ClassifierExtractor`.
    """

    NET = FashionNet
    DEFAULT_WEIGHTS: ClassVar[Path] = Path(__file__).with_name("fashion.safetensors")
    sample_shape: ClassVar[tuple[int, int, int]] = (1, 32, 32)
