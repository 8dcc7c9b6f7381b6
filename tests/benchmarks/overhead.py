"""What gancore's Python adds to an update: trainer and hooks beside a loop written by hand.

    python tests/benchmarks/overhead.py [--rounds N] [--updates N] [--json]

Networks of a few weights, so that an update is all overhead. The loop by hand draws its samples,
makes its losses, steps the same optimizer and copies its terms to the host as gancore does. Times
are of one critic update, drawing included. Of the hooks, what the calls through pluggy take more
than calling the same methods.
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import json
import pstats
from typing import Any

import torch
from timing import Spread, interleaved
from torch import nn

from gancore import CriticStep, Trainer
from gancore.isolation.caller import undisturbed
from gancore.losses import Wasserstein
from gancore.networks import MLPCritic, MLPGenerator
from gancore.plugins import Plugins, wrap
from gancore_gp import GradientPenalty


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--updates", type=int, default=100, help="in a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {
        **updates(arguments.rounds, arguments.updates),
        **hooks(arguments.rounds, arguments.updates),
        **profile(arguments.updates),
    }
    if arguments.json:
        print(json.dumps(found, indent=2, default=vars))
        return
    for name, value in found.items():
        print(f"{name:<58} {value}")


def small() -> Trainer:
    """Return a trainer of networks of a few weights."""
    torch.manual_seed(0)
    return Trainer(
        MLPGenerator((2,), latent=2, width=4, depth=1),
        MLPCritic((2,), width=4, depth=1),
        torch.randn(1000, 2),
        train={"steps": 1, "batch_size": 8},
        score={"metrics": []},
        device="cpu",
    )


def updates(rounds: int, count: int) -> dict[str, Spread]:
    """Return µs of a critic update without plugins by gancore, by hand, and the difference."""
    trainer = small()
    by_hand = [copy.deepcopy(each) for each in (trainer.generator, trainer.critic)]
    data = trainer.data.samples
    optimizer = torch.optim.Adam(by_hand[1].parameters(), lr=1e-4, betas=(0.5, 0.9), fused=True)
    parameters = list(by_hand[1].parameters())

    def ours() -> None:
        with undisturbed():  # as within a run
            for update in range(count):
                trainer.critic_update(update)

    def theirs() -> None:
        G, D = by_hand
        for _ in range(count):
            optimizer.zero_grad()
            real = data[torch.randint(len(data), (8,))]
            with torch.no_grad():
                fake = G(torch.randn(8, 2))
            d_real, d_fake = D(real).mean(), D(fake).mean()
            loss = d_fake - d_real
            torch.autograd.backward(loss)
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            torch.stack([loss, d_real, d_fake, norm]).tolist()
            optimizer.step()

    return differences(
        "a critic update", interleaved({"ours": ours, "theirs": theirs}, rounds), count
    )


def hooks(rounds: int, count: int) -> dict[str, Spread]:
    """Return the same of calling one penalty and one loss, which answer at once."""
    loss, penalty = Wasserstein(), GradientPenalty()
    plugins = Plugins([wrap(loss), wrap(penalty)])
    x = torch.zeros(1, 2)
    critic = nn.Linear(2, 1)
    step = CriticStep(critic, x, x)
    step.input_gradient(step.interpolates)
    step.scores(step.real), step.scores(step.fake)

    def ours() -> None:
        for _ in range(count):
            list(plugins.answer_penalties("penalty", step))
            plugins.answer_loss("critic_loss", step)
            plugins.call("post_step", critic=critic, update=0)

    def theirs() -> None:
        for _ in range(count):
            penalty.penalty(step)
            loss.critic_loss(step)

    return differences(
        "the hooks of one", interleaved({"ours": ours, "theirs": theirs}, rounds), count
    )


def profile(count: int) -> dict[str, str]:
    """Return the share of an update's time that a profile finds in gancore's and pluggy's lines.

    What they call in torch is left out. A profiler slows Python more than torch, so that the true
    share is smaller.
    """
    trainer = small()
    trainer.critic_update(0)
    profiler = cProfile.Profile()
    profiler.enable()
    for update in range(10 * count):
        trainer.critic_update(update)
    profiler.disable()
    entries = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    whole = sum(entry[2] for entry in entries.values())
    shares = {
        "gancore": sum(e[2] for (path, *_), e in entries.items() if "gancore/" in path),
        "pluggy": sum(e[2] for (path, *_), e in entries.items() if "pluggy/" in path),
    }
    return {
        f"%, of a profile, in {name}": f"{100 * own / whole:.1f}" for name, own in shares.items()
    }


def differences(what: str, seconds: dict[str, list[float]], count: int) -> dict[str, Any]:
    """Return µs a time of both, and how much more the first takes."""
    ours, theirs = ([1e6 * each / count for each in seconds[name]] for name in ("ours", "theirs"))
    more = [one - other for one, other in zip(ours, theirs, strict=True)]
    return {
        f"µs, {what}, gancore": Spread.of(ours),
        f"µs, {what}, by hand": Spread.of(theirs),
        f"µs, {what}, more": Spread.of(more),
    }


if __name__ == "__main__":
    main()
