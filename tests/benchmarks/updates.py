"""Critic updates: gancore beside the code that tutorials have, same networks, in turns.

    python tests/benchmarks/updates.py [NAME …] [--compile] [--rounds N] [--json]

Both sides of a case begin with the same weights, samples and random numbers, and where nothing
else differs their first gradients are compared before anything is timed. Drawing the generated
samples is left out. Times are medians with quartiles; a ratio is taken within each round.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import textbook
import torch
from timing import Spread, interleaved, ratio
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gancore import Trainer
from gancore.cost import Counts
from gancore.networks import DCGANCritic, MLPCritic, ResNetCritic, WGANCritic
from gancore_gp import GradientPenalty
from gancore_r1 import R1
from gancore_r2 import R2
from gancore_sn import SpectralNorm


@dataclass(frozen=True)
class Subject:
    """A critic, the shape of its samples, and how many there are in a batch."""

    critic: Callable[..., nn.Module]
    shape: tuple[int, ...]
    batch: int


SUBJECTS = {
    "ResNet": Subject(partial(ResNetCritic, width=64), (3, 32, 32), 16),
    "seeds": Subject(WGANCritic, (3, 32, 32), 64),
    "digits": Subject(DCGANCritic, (1, 8, 8), 64),
    "digits, no norm": Subject(partial(DCGANCritic, norm="none"), (1, 8, 8), 64),
    "toys": Subject(MLPCritic, (2,), 256),
}


@dataclass(frozen=True)
class Case:
    """A regularizer with its loss, and the code to compare with."""

    textbook: Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], None]
    loss: str
    plugins: tuple[Callable[[], object], ...] = ()
    normalized: bool = False


CASES = {
    "none": Case(textbook.wgan, "wasserstein"),
    "gp": Case(textbook.wgan_gp, "wasserstein", (GradientPenalty,)),
    "r1": Case(textbook.r1, "nonsaturating", (R1,)),
    "r1+r2": Case(textbook.r1_r2, "rpgan", (R1, R2)),
    "r1+r2 by R3GAN": Case(textbook.r3gan, "rpgan", (R1, R2)),
    "sn": Case(textbook.hinge, "hinge", (SpectralNorm,), normalized=True),
    "sn+gp": Case(
        textbook.wgan_gp, "wasserstein", (SpectralNorm, GradientPenalty), normalized=True
    ),
}

ASKED: dict[str, float | None] = {
    "none / ResNet": None,
    "none / toys": None,
    "gp / ResNet": 0.90,
    "gp / seeds": 1.00,
    "gp / digits": None,
    "gp / toys": None,
    "r1 / ResNet": 0.78,
    "r1 / digits, no norm": 0.78,
    "r1+r2 / ResNet": 0.85,
    "r1+r2 by R3GAN / ResNet": None,
    "sn / ResNet": 1.00,
    "sn+gp / ResNet": 1.00,
    "sn+gp / digits, no norm": 1.00,
}
"""What is measured, by case and subject, and the ratio of times that was asked for."""

ASKED_COMPILED: dict[str, float | None] = {
    "gp / toys": 0.65,
    "gp / digits": 0.85,
    "gp / seeds": None,
    "gp / ResNet": None,
}


class Source(nn.Module):
    """A generator that is not trained here."""

    latent = 2

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, torch.Size(shape).numel()), nn.Unflatten(1, shape))

    def forward(self, z: Tensor) -> Tensor:
        """Return samples (B, *shape)."""
        samples: Tensor = self.layers(z)
        return samples


def compare(case: Case, subject: Subject, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Return the times of a critic update, and the ratios of time and FLOPs."""
    torch.manual_seed(0)
    critic = subject.critic(subject.shape)
    plain = copy.deepcopy(critic)
    if case.normalized:
        for module in plain.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                spectral_norm(module)
    data = torch.randint(0, 256, (4 * subject.batch, *subject.shape), dtype=torch.uint8)
    trainer = Trainer(
        Source(subject.shape),
        critic,
        data if len(subject.shape) == 3 else data.float() / 128 - 1,
        loss=case.loss,
        plugins=[each() for each in case.plugins],
        train={"steps": 1, "batch_size": subject.batch, "compile": compiled},
        optimizer={"lr": 1e-4, "betas": [0.0, 0.9]},
        score={"metrics": []},
        device="cpu",
    )
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4, betas=(0.0, 0.9))

    def ours() -> float:
        return trainer.update_critic(0, *samples)["critic_grad_norm"]

    def theirs() -> None:
        case.textbook(plain, optimizer, *(each.clone() for each in samples))

    samples = trainer.critic_samples(0)  # which seeds the random numbers of an update, too
    began = time.perf_counter()
    norm = ours()
    first = time.perf_counter() - began
    samples = trainer.critic_samples(0)
    theirs()
    gradients = [each.grad for each in plain.parameters() if each.grad is not None]
    if not case.normalized and abs(float(nn.utils.get_total_norm(gradients)) / norm - 1) > 1e-3:
        raise SystemExit("the two sides have different gradients")
    found: dict[str, Any] = {}
    if compiled:
        found["s, first update, compilation included"] = first
    else:
        flops = []
        for way in (ours, theirs):
            with Counts() as counts:
                way()
            flops.append(counts.flops.total())
        found["FLOPs ÷ textbook"] = flops[0] / flops[1]
    seconds = interleaved({"gancore": ours, "textbook": theirs}, rounds)
    for name, taken in seconds.items():
        found[f"ms, {name}"] = Spread.of([1e3 * each for each in taken])
    return found | {"time ÷ textbook": ratio(seconds["gancore"], seconds["textbook"])}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="such as 'gp / ResNet'; all if none"
    )
    parser.add_argument("--compile", action="store_true", help="compile gancore's side")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    asked = ASKED_COMPILED if arguments.compile else ASKED
    everything = {}
    for name in arguments.names or asked:
        case, subject = name.split(" / ")
        found = compare(
            CASES[case], SUBJECTS[subject], arguments.rounds, compiled=arguments.compile
        )
        everything[name] = found | {"asked": asked.get(name)}
        if not arguments.json:
            print(name, f"(asked: {asked[name]})" if asked.get(name) else "")
            for what, value in found.items():
                print(f"  {what:<40} {value if isinstance(value, Spread) else f'{value:.3f}'}")
    if arguments.json:
        print(json.dumps({"threads": torch.get_num_threads()} | everything, indent=2, default=vars))


if __name__ == "__main__":
    main()
