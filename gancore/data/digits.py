"""The handwritten digits that scikit-learn brings: nothing to download."""

from __future__ import annotations

import torch

from gancore.data import Dataset


def digits() -> Dataset:
    """Return 1,797 images of 8×8 with labels (Alpaydin & Kaynak, 1998; UCI's test set).

    scikit-learn's values 0 … 16 become uint8 round(value·255/16).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).unsqueeze(1).mul(255 / 16).round().to(torch.uint8)
    return Dataset("digits", images, torch.from_numpy(bunch.target).long(), split="all")
