"""Feeding images: gancore's one tensor beside torchvision's ImageFolder and a DataLoader.

    python tests/benchmarks/input.py [ZIP] [--rounds N] [--batches N] [--json]

ZIP has images of one size in class folders; without one, 2,000 noisy PNGs of 32×32 are made. The
first load and a cached one each run in a process and on a cache of their own. Then gancore and
DataLoaders without and with two workers take turns at feeding the very same batches of 64, as
float32 in [−1, 1]. Memory is read from Linux's /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timing import Spread, interleaved, ratio
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, Normalize, ToTensor

from gancore.data import Dataset
from gancore.data.folder import folder
from gancore.isolation.randomness import DataOrder

BATCH = 64

LOAD = """
import json, sys, time
import PIL.Image, safetensors.torch, torch
from gancore.data.folder import folder

def memory(what):
    lines = (line.split() for line in open("/proc/self/status"))
    return next(int(line[1]) / 2**10 for line in lines if line[0] == what)

before, began, worked = memory("VmRSS:"), time.perf_counter(), time.process_time()
data = folder(path=sys.argv[1], size=int(sys.argv[2]))
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "seconds of processors": time.process_time() - worked,
    "MiB at the peak": memory("VmHWM:") - before,
    "MiB of one copy": data.samples.nbytes / 2**20,
}))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("zip", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=50, help="in a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        path = arguments.zip or made(Path(scratch, "images.zip"))
        size = side(path)
        loads = {"first load": load(path, size), "cached load": load(path, size)}
        with zipfile.ZipFile(path) as archive:
            archive.extractall(Path(scratch, "extracted"))
        normalized = Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])
        pictures = ImageFolder(str(Path(scratch, "extracted")), normalized)
        fed = feed(folder(path=str(path), size=size), pictures, arguments.rounds, arguments.batches)
    if arguments.json:
        print(json.dumps({**loads, **fed}, indent=2, default=vars))
        return
    for what, values in {**loads, **fed}.items():
        print(what)
        for name, value in values.items():
            print(f"  {name:<28} {value if isinstance(value, Spread) else format(value, '.4g')}")


def made(path: Path, images: int = 2000) -> Path:
    """Write a zip of noise in ten class folders."""
    numbers = torch.Generator().manual_seed(0)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(images):
            pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=numbers)
            stream = BytesIO()
            Image.fromarray(pixels.numpy()).save(stream, "PNG")
            archive.writestr(f"class{number % 10}/{number:05d}.png", stream.getvalue())
    return path


def side(path: Path) -> int:
    """Return the height of the first image."""
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if not name.endswith("/"))
        return Image.open(BytesIO(archive.read(name))).height


def load(path: Path, size: int) -> dict[str, float]:
    """Load the images in a new process; return its seconds and memory."""
    command = [sys.executable, "-c", LOAD, str(path), str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def feed(data: Dataset, pictures: ImageFolder, rounds: int, batches: int) -> dict[str, Any]:
    """Return images a second of each way, and how many times as fast gancore is."""

    def ours() -> Iterator[Tensor]:
        order = DataOrder(0, "benchmark", len(data))
        return (data.batch(order.take(BATCH * number, BATCH)) for number in count())

    def theirs(workers: int) -> Iterator[Tensor]:
        order = DataOrder(0, "benchmark", len(pictures))
        indices = (order.take(BATCH * number, BATCH).tolist() for number in count())
        return (x for x, _ in DataLoader(pictures, batch_sampler=indices, num_workers=workers))

    ways = {"gancore": ours(), **{f"DataLoader, {n} workers": theirs(n) for n in (0, 2)}}
    first, *others = [next(way) for way in ways.values()]
    for other in others:
        torch.testing.assert_close(first, other)
    seconds = interleaved(
        {name: lambda way=way: list(islice(way, batches)) for name, way in ways.items()},  # type: ignore[misc]
        rounds,
    )
    images = BATCH * batches
    return {
        "images a second, median and quartiles": {
            name: Spread.of([images / each for each in taken]) for name, taken in seconds.items()
        },
        "times as fast as": {
            name: ratio(taken, seconds["gancore"])
            for name, taken in seconds.items()
            if name != "gancore"
        },
    }


if __name__ == "__main__":
    main()
