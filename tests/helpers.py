"""Small networks, data and plugins that several test files use."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.data import Dataset
from gancore.recipe import Recipe
from gancore.training import Run, Trainer
from gancore.training.compiled import TRACES

ROOT = Path(__file__).parents[1]
LATENT = 5

needs_compiling = pytest.mark.skipif(
    not TRACES, reason=f"train.compile needs torch 2.13, this is {torch.__version__}"
)

TOY = """
[data]
name = "gaussians8"
samples = 400
[generator]
name = "mlp"
width = 16
[critic]
name = "mlp"
width = 16
[loss]
name = "wasserstein"
[[plugin]]
name = "gp"
[train]
steps = 3
batch_size = 16
[score]
metrics = []
samples = 64
"""
"""A recipe of points that trains in no time."""

DIGITS = TOY.replace('"gaussians8"\nsamples = 400', '"digits"').replace(
    "metrics = []", 'metrics = ["fid"]\nextractor = "digits"'
)
"""And one of images."""

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
"""Names the terminal's window and clears it."""

BROKEN = {
    "cut": b'{"scores": {"w2": 1.',
    "empty": b"",
    "a list": b"[1]",
    "null": b"null",
    "no text": b"\xff\xfe\x00",
    "deep": b'{"scores":' + b"[" * 100_000,
    "nested": b'{"scores": ' + b"[" * 500 + b"]" * 500 + b"}",
    "a long number": b'{"step": 1, "seconds": ' + b"9" * 5000 + b"}",
    "nan": b'{"step": 1, "seconds": NaN, "scores": {"w2": NaN}, "versions": NaN}',
    "wrong types": b'{"step": "1", "seconds": [], "scores": {"w2": "1"}, "plugins": 3, "git": 3}',
    "control characters": json.dumps(
        {"step": 1, "seconds": 1, ESCAPE: ESCAPE, "scores": {ESCAPE: 1}, "versions": {ESCAPE: "1"}}
    ).encode(),
}
"""What a JSON or TOML file may be instead."""

Gan = Callable[..., tuple[int, str, str]]
"""Of `gan`'s arguments: its exit code, output and errors."""


def parsed(text: str, **changes: Any) -> Recipe:
    """Return a recipe with other values at some key paths."""
    return Recipe.parse(tomllib.loads(text), overrides=changes)


def started(
    *arguments: object, cwd: Path = ROOT, timeout: float = 120, **options: Any
) -> tuple[int, str, str]:
    """Run `gan` in a process of its own, as its users do: seconds of imports, each time."""
    done = subprocess.run(
        [sys.executable, "-m", "gancore", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **options,
    )
    return done.returncode, done.stdout, done.stderr


def is_clear(text: str, path: Path) -> bool:
    """Whether an error names the file, is short, and holds nothing that moves a cursor."""
    lines = text.strip("\n").split("\n")
    return str(path) in text and len(text) < 10_000 and all(line.isprintable() for line in lines)


class Generator(nn.Module):
    """With batch normalization and dropout: buffers and random numbers to keep track of."""

    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        # a bias before batch normalization has no gradient but rounding, which Adam would amplify
        self.layers = nn.Sequential(
            nn.Linear(LATENT, 16, bias=False),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(16, 16),
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.layers(z)).view(-1, 1, 4, 4)


class Critic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Pictures(torch.utils.data.Dataset[Tensor]):
    """The grey PNGs of a folder, read by PIL alone."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as picture:
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
            return pixels.view(1, picture.height, picture.width)


def images(count: int = 50) -> Dataset:
    pixels = torch.Generator().manual_seed(0)
    samples = torch.randint(0, 256, (count, 1, 4, 4), generator=pixels, dtype=torch.uint8)
    return Dataset("noise", samples)


def networks(seed: int = 0) -> tuple[Generator, Critic]:
    torch.manual_seed(seed)
    return Generator(), Critic()


def trainer(**changes: Any) -> Trainer:
    generator, critic = networks()
    sections: dict[str, Any] = {
        "train": {"steps": 6, "batch_size": 8, "critic_steps": 2},
        "optimizer": {"lr": 1e-2},
        "score": {"metrics": []},
        "sample": {"count": 4},
        "device": "cpu",
        **changes,
    }
    return Trainer(generator, critic, sections.pop("data", images()), **sections)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0, msg=key)


@plugin
class Spy:
    """Keeps what it sees; its penalty is a small weight decay."""

    critic_steps: list[CriticStep] = field(init=False, default_factory=list)
    generator_steps: list[GeneratorStep] = field(init=False, default_factory=list)
    posts: list[int] = field(init=False, default_factory=list)
    records: list[dict[str, Any]] = field(init=False, default_factory=list)
    started: list[tuple[Path, int]] = field(init=False, default_factory=list)
    sampled: list[tuple[tuple[int, ...], int]] = field(init=False, default_factory=list)

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        self.critic_steps.append(step)
        assert isinstance(step.critic, nn.Module)
        return 1e-3 * torch.stack([p.square().sum() for p in step.critic.parameters()]).sum()

    @hookimpl
    def generator_penalty(self, step: GeneratorStep) -> None:
        self.generator_steps.append(step)

    @hookimpl
    def post_step(self, update: int) -> None:
        assert not torch.is_grad_enabled()
        self.posts.append(update)

    @hookimpl
    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    @hookimpl
    def start(self, folder: Path, step: int) -> None:
        self.started.append((folder, step))

    @hookimpl
    def sample(self, samples: Tensor, step: int) -> None:
        self.sampled.append((tuple(samples.shape), step))


def records_of(run: Run) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, read by json alone."""
    return [json.loads(line) for line in run.metrics_path.read_text().splitlines()]


def scores_of(run: Run) -> dict[str, Any] | None:
    """Return a run's scores.json, read by json alone; None where there is none."""
    return json.loads(run.scores_path.read_text()) if run.scores_path.exists() else None


def environment_of(run: Run) -> dict[str, Any]:
    """Return a run's environment.json, read by json alone."""
    about: dict[str, Any] = json.loads(run.environment_path.read_text())
    return about


def words(
    seed: int, who: str, call: int, update: int, count: int, *, lane: int = 0, start: int = 0
) -> np.ndarray:
    """Return the 32 bits behind each number of a draw: the random numbers of steps, in NumPy."""

    def mixed(x: np.ndarray) -> np.ndarray:  # unsigned: products wrap around by themselves
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        return x ^ (x >> np.uint32(16))

    one, two = (np.array([seed >> shift & 0xFFFFFFFF], np.uint32) for shift in (0, 32))
    for number in (*who.encode(), len(who), call, lane, update):
        one = mixed(one + np.uint32(number))
        two = mixed(one ^ two)
    return mixed(mixed(np.arange(start, start + count, dtype=np.uint32) + one) ^ two)


def uniform(*place: Any, bits: int = 24, **options: Any) -> np.ndarray:
    """Return what `step.rand` draws in float32, from `words`."""
    return (words(*place, **options) >> np.uint32(32 - bits)) / 2.0**bits
