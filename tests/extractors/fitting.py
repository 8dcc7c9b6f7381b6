"""How the classifiers of the extractors are trained, and written with how that was done.

The same machine and versions give the same bytes; others may give other weights of like accuracy.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.functional import cross_entropy

from gancore.files.writing import write_bytes
from gancore.scoring.classifier import ClassifierNet

CHUNK = 4096
"""Images in one forward pass where no gradient is needed, to bound memory."""

Net = TypeVar("Net", bound=ClassifierNet)


def fit(
    build: Callable[[], Net],
    images: Tensor,
    labels: Tensor,
    *,
    augment: Callable[[Tensor], Tensor],
    epochs: int,
    batch: int,
    peak_lr: float,
    seed: int,
) -> Net:
    """Return a network trained on images (N, C, H, W) uint8 with labels (N,), on the CPU.

    AdamW with weight decay 0.01 and one cycle of the learning rate (Smith and Topin, 2018), each
    batch as `augment` changes it: (B, C, H, W) uint8 → floats 0..255. At the end the features'
    mean and variance are fixed to those of the images as they are. Torch's random state is left
    as it was found.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
        optimizer = torch.optim.AdamW(net.parameters(), lr=peak_lr, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peak_lr, total_steps=epochs * math.ceil(len(images) / batch)
        )
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for chosen in torch.split(order, batch):
                _, logits = net(augment(images[chosen]))
                optimizer.zero_grad()
                torch.autograd.backward(cross_entropy(logits, labels[chosen]))
                optimizer.step()
                schedule.step()
    net.standardize.reset_running_stats()
    net.standardize.momentum = 1.0
    with torch.no_grad():
        net.standardize(torch.cat([net.embedding(chunk) for chunk in torch.split(images, CHUNK)]))
    return net.eval()


@torch.no_grad()
def accuracy(net: ClassifierNet, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images (N, C, H, W) that the network gives their labels (N,)."""
    named = torch.cat([net(chunk)[1].argmax(dim=1) for chunk in torch.split(images, CHUNK)])
    return float((named == labels).double().mean())


def write(net: ClassifierNet, metadata: dict[str, Any], path: Path) -> None:
    """Write the weights as safetensors, with metadata under one key, `gancore`, as JSON.

    One key, because safetensors writes several in random order.
    """
    packed = {"gancore": json.dumps(metadata, sort_keys=True)}
    write_bytes(path, save(net.state_dict(), packed))
