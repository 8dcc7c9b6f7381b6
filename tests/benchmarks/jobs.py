"""Two runs at a time on one thread each, or one after the other on two: which gives more an hour?

    python tests/benchmarks/jobs.py [RECIPE] [--steps N] [--rounds N] [--json]

Each way makes two runs; both ways take turns. Counted is the time of training as the runs record
it, without start-up: for the two at a time that of the slower one, else the sum of both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from timing import Spread, ratio

from gancore.training import Run

RECIPE = Path(__file__).parents[2] / "recipes" / "wgan_gp_digits.toml"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", type=Path, default=RECIPE)
    parser.add_argument("--steps", type=int, default=150, help="generator updates of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    together: list[float] = []
    in_turn: list[float] = []
    for _ in range(arguments.rounds):
        together.append(max(train(arguments.recipe, arguments.steps, [1, 1])))
        first, second = (train(arguments.recipe, arguments.steps, [2])[0] for _ in range(2))
        in_turn.append(first + second)
    found = {
        "seconds for two runs, two at a time on one thread each": Spread.of(together),
        "seconds for two runs, one after the other on two threads": Spread.of(in_turn),
        "times as many runs an hour by two at a time": ratio(in_turn, together),
    }
    if arguments.json:
        print(json.dumps(found, indent=2, default=vars))
        return
    for name, value in found.items():
        print(f"{name:<58} {value}")


def train(recipe: Path, steps: int, threads: list[int]) -> list[float]:
    """Make a run for each number of threads, all at once; return their seconds of training."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = {Path(scratch, f"run{number}"): count for number, count in enumerate(threads)}
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "gancore", "run", str(recipe), f"--out={out}"),
                    *(f"--set=train.steps={steps}", "--set=score.metrics=[]", f"--seed={number}"),
                ],
                env={**os.environ, "OMP_NUM_THREADS": str(count)},
                stdout=subprocess.DEVNULL,
            )
            for number, (out, count) in enumerate(runs.items())
        ]
        for each in started:
            if each.wait():
                raise SystemExit(f"a run failed: {each.args!r}")
        return [Run.open(out).read().records[-1].seconds for out in runs]


if __name__ == "__main__":
    main()
