"""One GAN on several processes: time of its updates on N of one thread each, against one alone.

    python tests/benchmarks/ranks.py [RECIPE] [PROCESSES] [STEPS]

Both take turns in rounds; the ratio of each round is what counts. Below 1, spreading pays. CIFAR-10
is random pixels here.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch; the processes are forks

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import torch  # noqa: E402
from processes import together  # noqa: E402
from timing import ratio  # noqa: E402

from gancore.data import Dataset  # noqa: E402
from gancore.recipe import Recipe  # noqa: E402
from gancore.training import experiment  # noqa: E402

ROUNDS = 9


def seconds(recipe: Recipe, steps: int) -> float:
    """Return the time of so many steps, after one that warms up."""
    if recipe.data.name == "cifar10":
        pixels = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
        experiment.load_data = lambda recipe: Dataset("random", pixels)
    made = experiment.build_trainer(recipe, device="cpu")
    critic_steps = recipe.train.critic_steps
    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()
        for number in range(critic_steps):
            made.critic_update(step * critic_steps + number)
        made.generator_update(step)
    return time.perf_counter() - began


def main(name: str = "wgan_gp_digits", processes: str = "2", steps: str = "20") -> None:
    """Print the median ratio, between its quartiles."""
    recipe = Recipe.load(ROOT / "recipes" / f"{name}.toml")
    alone: list[float] = []
    spread: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for count, took in ((1, alone), (int(processes), spread)):
                took.append(max(together(lambda: seconds(recipe, int(steps)), Path(folder), count)))
            one, many = (took[-1] / int(steps) * 1e3 for took in (alone, spread))
            print(f"round {number + 1}: {one:.1f} ms a step, {many:.1f} ms spread", flush=True)
    print(f"{name}, {processes} processes ÷ one: {ratio(spread, alone)}, {ROUNDS} rounds")


if __name__ == "__main__":
    main(*sys.argv[1:])
