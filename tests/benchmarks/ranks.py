"""One GAN on several processes: time of its updates on N of one thread each, against one alone.

    python tests/benchmarks/ranks.py [RECIPE] [PROCESSES]

Both take turns in rounds; the ratio of each round is what counts. Below 1, spreading pays.
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

from processes import together  # noqa: E402
from timing import ratio  # noqa: E402

from gancore.recipe import Recipe  # noqa: E402
from gancore.training import trainer  # noqa: E402

ROUNDS, STEPS = 9, 20


def seconds(recipe: Recipe) -> float:
    """Return the time of STEPS steps, after one that warms up."""
    made = trainer(recipe, device="cpu")
    critic_steps = recipe.train.critic_steps
    began = 0.0
    for step in range(STEPS + 1):
        if step == 1:
            began = time.perf_counter()
        for number in range(critic_steps):
            made.critic_update(step * critic_steps + number)
        made.generator_update(step)
    return time.perf_counter() - began


def main(name: str = "wgan_gp_digits", processes: str = "2") -> None:
    """Print the median ratio, between its quartiles."""
    recipe = Recipe.load(ROOT / "recipes" / f"{name}.toml")
    alone: list[float] = []
    spread: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            for count, took in ((1, alone), (int(processes), spread)):
                took.append(max(together(lambda: seconds(recipe), Path(folder), count)))
            one, many = (took[-1] / STEPS * 1e3 for took in (alone, spread))
            print(f"round {number + 1}: {one:.1f} ms a step, {many:.1f} ms spread", flush=True)
    print(f"{name}, {processes} processes ÷ one: {ratio(spread, alone)}, {ROUNDS} rounds")


if __name__ == "__main__":
    main(*sys.argv[1:])
