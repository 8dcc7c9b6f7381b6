"""What a run leaves on the disk and does to its networks, by reading and reckoning of our own."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, Spy, images, parsed, trainer
from torch import Tensor

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.report import Display
from gancore.training import build_trainer
from gancore.training.tally import Tally
from gancore_gp import GradientPenalty


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


STOPPED = {"max_seconds": 1e-9}
"""Of `train`: one update, then it stops."""


def train(steps: int, **changes: Any) -> dict[str, Any]:
    return {"steps": steps, "batch_size": 8, "critic_steps": 2, **changes}


def test_what_is_due_at_which_step(tmp_path: Path) -> None:
    """Records: the first, each third, the last. Grids: each second and the last, so checkpoints."""
    trainer(
        plugins=[GradientPenalty()],
        train=train(7),
        log={"every": 3},
        sample={"every": 2, "count": 4},
        checkpoint={"every": 4, "keep": 2},
    ).run(tmp_path)
    assert [record["step"] for record in records(tmp_path)] == [1, 3, 6, 7]
    assert [record["update"] for record in records(tmp_path)] == [2, 6, 12, 14]
    assert names(tmp_path / "samples") == [f"step-{step:06d}.png" for step in (2, 4, 6, 7)]
    assert names(tmp_path / "checkpoints") == ["step-000004", "step-000007"]
    for record in records(tmp_path):
        assert record["wasserstein"] == pytest.approx(record["d_real"] - record["d_fake"])
        assert record["penalty/gp"] > 0
    seconds = [record["seconds"] for record in records(tmp_path)]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type:
    """A plugin in whose first update 100 s go by, on a clock of our own."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    @plugin
    class Slow:
        """Takes its time."""

        @hookimpl
        def penalty(self, step: CriticStep) -> None:
            now[0] += 100.0 if step.update == 0 else 0.25

    return Slow


def test_seconds_go_on_where_a_run_was_stopped_and_its_limit_begins_anew(
    tmp_path: Path, slow: type
) -> None:
    for resume in (False, True):
        made = trainer(plugins=[slow()], train=train(3, max_seconds=50), log={"every": 1})
        made.run(tmp_path, resume=resume)
    assert [record["seconds"] for record in records(tmp_path)] == [100.25, 100.75, 101.25]


def test_records_are_on_the_disk_before_the_checkpoint_that_goes_on_from_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def spied(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        if synced[-1] == "metrics.jsonl":
            steps.append(len(records(tmp_path)))
        fsync(handle)

    steps: list[int] = []
    monkeypatch.setattr(os, "fsync", spied)
    trainer(train=train(3), log={"every": 1}, checkpoint={"every": 1, "keep": 1}).run(tmp_path)
    made = [number for number, name in enumerate(synced) if name == "checkpoints"]
    assert len(made) >= 3
    for number in made:
        assert "metrics.jsonl" in synced[:number]
    assert steps[-1] == 3  # all that are there when the last is saved


def test_scores_of_fewer_steps_are_not_those_of_a_run_that_goes_on(tmp_path: Path) -> None:
    trainer(train=train(4, **STOPPED)).run(tmp_path)
    (tmp_path / "scores.json").write_text('{"scores": {"w2": 1.0}, "protocol": {}, "step": 4}')
    trainer(train=train(4, **STOPPED)).run(tmp_path, resume=True)
    assert names(tmp_path / "checkpoints")[-1] == "step-000002"
    assert not (tmp_path / "scores.json").exists()


def test_what_a_killed_process_left_among_samples_and_checkpoints_goes(tmp_path: Path) -> None:
    trainer(train=train(4, **STOPPED)).run(tmp_path)
    for folder in ("samples", "checkpoints"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / ".writing-0123456789abcdef").touch()
    trainer(train=train(4)).run(tmp_path, resume=True)
    assert names(tmp_path / "samples") == ["step-000004.png"]
    assert all(name.startswith(("step-", "best")) for name in names(tmp_path / "checkpoints"))


SCORED: dict[str, Any] = {
    "score.metrics": ["w2"],
    "score.samples": 64,
    "score.every": 1,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
    "train.steps": 5,
}


def test_the_best_is_that_of_the_lowest_score_and_is_there(tmp_path: Path) -> None:
    build_trainer(parsed(TOY, **SCORED), device="cpu").run(tmp_path)
    scores = {record["step"]: record["score/w2"] for record in records(tmp_path)}
    assert len(scores) == 5
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best == {"step": min(scores, key=scores.__getitem__), "score": "w2",
                    "value": min(scores.values())}  # fmt: skip
    # back to the step before the best, which is then no more
    for path in (tmp_path / "checkpoints").glob("step-*"):
        if int(path.name[5:]) >= best["step"]:
            shutil.rmtree(path)
    left = names(tmp_path / "checkpoints")
    assert left != ["best.json"]
    stopped = build_trainer(parsed(TOY, **SCORED, **{"train.max_seconds": 1e-9}), device="cpu")
    stopped.run(tmp_path, resume=True)
    again = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert (tmp_path / "checkpoints" / f"step-{again['step']:06d}").is_dir()
    assert again["step"] <= best["step"]


def test_the_best_is_there_though_a_run_that_goes_on_ends_at_once(tmp_path: Path) -> None:
    build_trainer(parsed(TOY, **SCORED), device="cpu").run(tmp_path)
    folder = tmp_path / "checkpoints"
    best = json.loads((folder / "best.json").read_text())["step"]
    for path in folder.glob("step-*"):
        if int(path.name[5:]) >= max(best, 2):
            shutil.rmtree(path)

    class Ends(Display):
        def begin(self, *given: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_trainer(parsed(TOY, **SCORED), device="cpu").run(
            tmp_path, resume=True, display=Ends()
        )
    for path in folder.glob("best.json"):
        assert (folder / f"step-{json.loads(path.read_text())['step']:06d}").is_dir()


def test_no_number_is_never_the_best_and_another_score_begins_anew() -> None:
    tally = Tally()
    tally.remember_best(1, {"w2": math.nan})
    tally.remember_best(2, {"w2": math.inf})
    assert tally.best is None
    tally.remember_best(3, {"w2": 1.0})
    tally.remember_best(4, {"w2": 2.0})
    tally.remember_best(5, {"fid": 300.0, "w2": 0.5})
    assert json.loads(json.dumps(tally.state()["best"])) == {
        "step": 5, "score": "fid", "value": 300.0
    }  # fmt: skip


@plugin
class Weights:
    """Keeps the weights of both networks at each of their updates."""

    critics: list[Tensor] = field(init=False, default_factory=list)
    generators: list[Tensor] = field(init=False, default_factory=list)

    @hookimpl
    def penalty(self, step: CriticStep) -> None:
        self.critics.append(step.critic.layers[1].weight.detach().clone())  # type: ignore[attr-defined]

    @hookimpl
    def generator_penalty(self, step: GeneratorStep) -> None:
        self.generators.append(step.generator.layers[4].weight.detach().clone())  # type: ignore[attr-defined]


@pytest.mark.parametrize("decay", ["none", "linear"])
def test_both_networks_learn_at_the_rate_of_the_step(decay: str, tmp_path: Path) -> None:
    """Adam without averages moves each weight by the rate itself: lr·(1 − step/steps) at last."""
    kept, rate = Weights(), 2.0**-7
    trainer(
        plugins=[kept],
        train=train(4),
        optimizer={"lr": rate, "betas": (0.0, 0.0), "decay": decay},
    ).run(tmp_path)

    def moved(weights: list[Tensor]) -> list[float]:
        return [(after - before).abs().median().item() for before, after in pairwise(weights)]

    factors = [1.0, 0.75, 0.5, 0.25] if decay == "linear" else [1.0] * 4
    expected = [rate * factor for factor in factors]
    assert moved(kept.generators) == pytest.approx(expected[:-1], rel=1e-3)
    # two critic updates a step, and of the last the weights after it are not seen
    assert moved(kept.critics) == pytest.approx(
        [each for each in expected for _ in "ab"][:-1], 1e-3
    )


def pixels(samples: Tensor) -> Tensor:
    return samples.detach().add(1).mul(127.5).round().to(torch.uint8)


def test_each_image_is_flipped_half_of_the_times() -> None:
    spy = Spy()
    made = trainer(plugins=[spy], data=images(400), flip=True, train=train(1, batch_size=400))
    made.critic_update(0)
    whole = {image.numpy().tobytes() for image in images(400).samples}
    shown = pixels(spy.critic_steps[0].real)
    flipped = sum(image.numpy().tobytes() not in whole for image in shown)
    assert flipped == pytest.approx(200, abs=40)  # four standard deviations of 400 coins
    assert all(image.flip(-1).numpy().tobytes() in whole for image in shown
               if image.numpy().tobytes() not in whole)  # fmt: skip


def test_both_networks_see_each_image_once_a_round_in_orders_of_their_own(tmp_path: Path) -> None:
    spy = Spy()
    trainer(plugins=[spy], data=images(32), train=train(8, critic_steps=1)).run(tmp_path)
    index = {image.numpy().tobytes(): number for number, image in enumerate(images(32).samples)}
    orders = []
    for steps in (spy.critic_steps, spy.generator_steps):
        seen = [index[image.numpy().tobytes()] for step in steps for image in pixels(step.real)]
        assert sorted(seen[:32]) == sorted(seen[32:]) == list(range(32))
        assert seen[:32] != seen[32:]
        orders.append(seen)
    assert orders[0] != orders[1]
    alike = sum(one == other for one, other in zip(*orders, strict=True))
    assert alike <= 10  # of 64, of which 2 are by chance
