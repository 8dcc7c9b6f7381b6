"""Reproduce the weights of the `fashion` extractor.

    PYTHONPATH=tests python -m extractors.fashion_train

`FashionNet` learns the 60,000 training images of Fashion-MNIST for 5 epochs under Gaussian noise:
two to three minutes on one core. It gets 90.8 % of the 10,000 test images right, none of which it
was fitted on. The same machine and versions give the same bytes; others may give other weights of
like accuracy.

The file's metadata has one key, `gancore`: a JSON object with the accuracy, the hashes of both
splits, and how the network was made.
"""

from pathlib import Path

import torch
from extractors.fitting import accuracy, fit, write
from torch import Tensor

from gancore.data.mnist import fashion_mnist
from gancore.scoring.fashion import FashionExtractor, FashionNet

SEED = 0
EPOCHS = 5
BATCH = 64
PEAK_LR = 3e-3


def augment(images: Tensor) -> Tensor:
    """Return images (B, 1, 32, 32) in 0..255 with Gaussian noise of deviation 0..20 (of 255)."""
    noise = 20 * torch.rand(len(images), 1, 1, 1) * torch.randn(images.shape)
    return (images + noise).clamp(0, 255)


def train(images: Tensor, labels: Tensor, epochs: int = EPOCHS) -> FashionNet:
    """Return a `FashionNet` trained on images (N, 1, 32, 32) uint8 with labels (N,), on the CPU.

    Torch's random state is left as it was found.
    """
    return fit(
        FashionNet,
        images,
        labels,
        augment=augment,
        epochs=epochs,
        batch=BATCH,
        peak_lr=PEAK_LR,
        seed=SEED,
    )


def main(path: Path = FashionExtractor.DEFAULT_WEIGHTS) -> None:
    """Train, print the held-out accuracy, and write the weights and their metadata."""
    torch.set_num_threads(1)
    data, held_out = fashion_mnist(split="train"), fashion_mnist(split="test")
    assert data.labels is not None
    assert held_out.labels is not None
    net = train(data.samples, data.labels)
    reached = accuracy(net, held_out.samples, held_out.labels)
    metadata = {
        "accuracy": reached,
        "split": "fit on the 60,000 training images, held out the 10,000 test images",
        "train_sha256": data.sha256,
        "test_sha256": held_out.sha256,
        "augmentation": "noise sd 0..20 of 255",
        "epochs": EPOCHS,
        "seed": SEED,
        "scaling": "uint8 0..255 as published, two zeros on each side",
        "torch": torch.__version__,
    }
    write(net, metadata, path)
    print(f"held-out accuracy {reached:.4f} on {len(held_out)} images; wrote {path}")


if __name__ == "__main__":
    main()
