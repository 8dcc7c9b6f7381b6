"""Reproduce the weights of the `digits` extractor.

    PYTHONPATH=tests python -m extractors.digits_train

`DigitsNet` learns three quarters of scikit-learn's digits for 60 epochs under small random affine
maps and Gaussian noise: about 15 seconds on one core. It gets all 450 held-out images right; other
seeds and splits (1 to 4) gave 98.7 to 99.3 %. The same machine and versions give the same bytes;
others may give other weights of like accuracy.

The file's metadata has one key, `gancore`: a JSON object with the accuracy, the held-out indices
into `load_digits()`, and how the network was made.
"""

import math
from pathlib import Path

import numpy as np
import sklearn
import torch
from extractors.fitting import accuracy, fit, write
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from gancore.scoring.digits import DigitsExtractor, DigitsNet

SEED = 0
EPOCHS = 60
BATCH = 96
PEAK_LR = 3e-3
SCALING = "uint8 = round(v * 255 / 16) for v in 0..16"


def load_data() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits: images (1797, 1, 8, 8) uint8 in 0..255, labels (1797,)."""
    values, labels = load_digits(return_X_y=True)
    images = np.round(values * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(images), torch.from_numpy(labels)


def split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices (N,) to train on and those held out: a stratified quarter."""
    learned, held_out = train_test_split(
        np.arange(len(labels)), test_size=0.25, stratify=labels.numpy(), random_state=SEED
    )
    return torch.from_numpy(np.sort(learned)), torch.from_numpy(np.sort(held_out))


def augment(images: Tensor) -> Tensor:
    """Return images (B, 1, 8, 8) in 0..255, each moved a little and made noisy.

    Each is turned by up to 12 degrees, scaled by 0.9..1.1, shifted by up to 0.8 pixels along each
    axis, and given Gaussian noise of standard deviation 0..20 (of 255).
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(len(images), *shape) * 2 - 1

    angle, scale = uniform() * math.radians(12), 1 + 0.1 * uniform()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    shift = uniform(2, 1) * 0.8 / 4  # affine_grid's unit is half the width, four pixels
    grid = affine_grid(torch.cat([linear, shift], dim=2), list(images.shape), align_corners=False)
    moved = grid_sample(images.float(), grid, align_corners=False)
    noisy = moved + 20 * torch.rand(len(images), 1, 1, 1) * torch.randn(images.shape)
    return noisy.clamp(0, 255)


def train(images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> DigitsNet:
    """Return a `DigitsNet` trained on images (N, 1, 8, 8) uint8 with labels (N,), on the CPU.

    Torch's random state is left as it was found.
    """
    return fit(
        DigitsNet,
        images,
        labels,
        augment=augment,
        epochs=epochs,
        batch=BATCH,
        peak_lr=PEAK_LR,
        seed=SEED,
    )


def main(path: Path = DigitsExtractor.DEFAULT_WEIGHTS) -> None:
    """Train, print the held-out accuracy, and write the weights and their metadata."""
    torch.set_num_threads(1)
    images, labels = load_data()
    learned, held_out = split(labels)
    net = train(images[learned], labels[learned])
    reached = accuracy(net, images[held_out], labels[held_out])
    metadata = {
        "accuracy": reached,
        "split": f"stratified 25 % held out: train_test_split(test_size=0.25, random_state={SEED})",
        "held_out": held_out.tolist(),
        "augmentation": "turn 12 deg, scale 10 %, shift 0.8 pixels, noise sd 0..20 of 255",
        "epochs": EPOCHS,
        "seed": SEED,
        "scaling": SCALING,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
    }
    write(net, metadata, path)
    print(f"held-out accuracy {reached:.4f} on {len(held_out)} images; wrote {path}")


if __name__ == "__main__":
    main()
