"""The `digits` feature extractor: a small classifier of 8×8 digits that serves torch-fidelity.

It gives FID, IS, KID and precision/recall of scikit-learn's digits at about a second on a CPU.
`tests/extractors/digits_train.py` makes the weights, and records in them how. Scores taken with it
compare with each other only, never with scores taken with Inception.
"""

from pathlib import Path
from typing import ClassVar

from gancore.scoring.classifier import ClassifierExtractor, ClassifierNet


class DigitsNet(ClassifierNet):
    """A small convolutional classifier: (B, 1, 8, 8) → 64 features and 10 logits."""

    def __init__(self) -> None:
        super().__init__((1, 32, 3, 1), (32, 64, 3, 2), (64, 64, 3, 2), inputs=64 * 2 * 2)


class DigitsExtractor(ClassifierExtractor):
    """`DigitsNet` as a torch-fidelity 0.4 feature extractor, with the features "64" and "logits".

    It takes uint8 images of shape (B, 1, 8, 8) with values 0..255, which gancore makes of the
    digits' 0..16 by round(v·255/16). Arguments and errors are those of `ClassifierExtractor`.
    """

    NET = DigitsNet
    DEFAULT_WEIGHTS: ClassVar[Path] = Path(__file__).with_name("digits.safetensors")
    sample_shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
