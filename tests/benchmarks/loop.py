"""The whole training loop: gancore's trainer beside the tutorial's loop and its DataLoader.

    python tests/benchmarks/loop.py [--rounds N] [--steps N] [--json]

WGAN-GP with recipes/wgan_gp_digits.toml's networks, batches and five critic updates a step. The
tutorial's loop has neither a moving average nor records; gancore's has both, fresh real samples for
each critic update, and a check that every term is finite.
"""

from __future__ import annotations

import argparse
import copy
import json
from itertools import count, islice
from pathlib import Path

import torch
from textbook import steps_of_wgan_gp
from timing import Spread, interleaved, ratio
from torch.utils.data import DataLoader, TensorDataset

from gancore.recipe import Recipe
from gancore.training import build_trainer

RECIPE = Path(__file__).parents[2] / "recipes" / "wgan_gp_digits.toml"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="generator updates in a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    recipe = Recipe.load(RECIPE, [])
    made = build_trainer(recipe, device="cpu")
    generator, critic = copy.deepcopy(made.generator), copy.deepcopy(made.critic)
    samples = made.data.batch(torch.arange(len(made.data)))
    loader = DataLoader(
        TensorDataset(samples), batch_size=recipe.train.batch_size, shuffle=True, drop_last=True
    )
    by_hand = steps_of_wgan_gp(generator, critic, loader, made.generator.latent)
    numbers = count()

    def ours() -> None:
        for step in islice(numbers, arguments.steps):
            for number in range(recipe.train.critic_steps):
                made.critic_update(step * recipe.train.critic_steps + number)
            made.generator_update(step)

    def theirs() -> None:
        for _ in islice(by_hand, arguments.steps):
            pass

    seconds = interleaved({"gancore": ours, "by hand": theirs}, arguments.rounds)
    found = {
        f"ms a step, {name}": Spread.of([1e3 * each / arguments.steps for each in taken])
        for name, taken in seconds.items()
    }
    found["time ÷ by hand"] = ratio(seconds["gancore"], seconds["by hand"])
    if arguments.json:
        print(json.dumps(found, indent=2, default=vars))
        return
    for name, value in found.items():
        print(f"{name:<20} {value}")


if __name__ == "__main__":
    main()
