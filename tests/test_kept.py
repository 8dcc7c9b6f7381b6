"""What a run keeps is of now, is there, and is on the disk before what depends on it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, Critic, Generator, images, parsed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from gancore.errors import CheckpointError
from gancore.report import Display
from gancore.scoring.protocol import Scores
from gancore.training import Run, Trainer, checkpoint, load_generator
from gancore.training import build_trainer as build
from gancore.training.checkpoint import Checkpoint
from gancore.training.optimizers import optimizer_state, restore_optimizer


def trained(folder: Path, steps: int, *, display: Display | None = None, **changes: Any) -> Run:
    """Make, or go on with, a run on points that is scored."""
    small = {"train.steps": steps, "train.batch_size": 8, "score.metrics": ["w2"]}
    small |= {"score.samples": 16, "sample.count": 4}
    made = build(parsed(TOY, **{**small, **changes}), device="cpu")
    return made.run(folder, resume=True, display=display)


class Ended(Display):
    """Ends a run before its first update."""

    def begin(self, title: str, step: int, steps: int) -> None:
        raise KeyboardInterrupt


# scores and marks


def test_scores_of_an_earlier_step_go_when_the_run_goes_on(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", 2)
    assert json.loads(run.scores_path.read_text())["step"] == 2
    trained(run.path, 2)  # there is nothing to do
    assert run.scores_path.exists()
    with pytest.raises(KeyboardInterrupt):
        trained(run.path, 4, display=Ended())
    assert not run.scores_path.exists()


def test_the_best_step_is_one_that_has_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one, which scored better, is damaged: what is marked then is the earlier one."""
    values = iter((2.0, 1.0, 3.0))

    def scores(*_: Any, **__: Any) -> Scores:
        reference = {"name": "points", "split": "train", "samples": 8}
        protocol = {"reference": reference, "samples": 16, "seed": 0, "versions": {}}
        table = {"scores": {"w2": next(values)}, "protocol": protocol, "spread": 1.0}
        return Scores.model_validate(table)

    for name, module in list(sys.modules.items()):  # wherever it has been imported to
        if name.startswith("gancore.training.") and hasattr(module, "score_generator"):
            monkeypatch.setattr(module, "score_generator", scores)
    every = {"score.every": 1, "checkpoint.every": 1, "checkpoint.keep": 3}
    run = trained(tmp_path / "run", 2, **every)
    marked = run.checkpoints / "best.json"
    assert json.loads(marked.read_text()) == {"step": 2, "score": "w2", "value": 1.0}
    (run.checkpoints / "step-000002" / "state.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        trained(run.path, 3, display=Ended(), **every)
    assert json.loads(marked.read_text()) == {"step": 1, "score": "w2", "value": 2.0}
    assert load_generator(run, best=True) is not None


# the disk


EVENTS: list[tuple[str, str]] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if EVENTS is not None and event == "os.rename":
        EVENTS.append(("named", str(arguments[1])))


sys.addaudithook(_note)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """Collect what is synced, by the name it has then, and the names that are given, in order."""
    global EVENTS
    EVENTS, fsync = [], os.fsync

    def spied(handle: int) -> None:
        assert EVENTS is not None
        EVENTS.append(("synced", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spied)
    yield EVENTS
    EVENTS = None


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    run = trained(tmp_path / "run", 1)
    final = str(run.checkpoints / "step-000001")
    named = max(k for k, event in enumerate(events) if event == ("named", final))
    before, after = events[:named], events[named + 1 :]
    assert ("synced", str(run.metrics_path)) in before  # its records are as old as it, at least
    files = {path.name for path in Path(final).iterdir()}
    assert len(files) > 4
    for name in files:
        given = max(
            k
            for k, (what, path) in enumerate(before)
            if what == "named" and path.endswith(f"/{name}") and ".writing-" in path
        )
        what, fresh = before[given - 1]  # the content, and then the name
        assert (what, ".writing-" in fresh) == ("synced", True)
        folder = str(Path(before[given][1]).parent)
        assert ("synced", folder) in before[given:]
    assert after[0] == ("synced", str(run.checkpoints))


def test_scores_and_recipe_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, events: list[tuple[str, str]]
) -> None:
    run = trained(tmp_path / "run", 1)
    for path in (run.recipe_path, run.environment_path, run.scores_path):
        named = events.index(("named", str(path)))
        assert events[named - 1][0] == "synced"
        assert Path(events[named - 1][1]).parent == run.path
        assert events[named + 1] == ("synced", str(run.path))


# optimizers


class Slashed(nn.Module):
    """Two parameters alike, the name of one of which begins the other's."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a/b", "a", "a/b/a"):
            self.register_parameter(name, nn.Parameter(torch.zeros(2)))


@pytest.mark.parametrize("names", [("a", "a/b", "a/b/a"), ("a/b", "a", "a/b/a")])
def test_the_optimizer_state_of_a_name_goes_to_that_name(names: tuple[str, ...]) -> None:
    module = Slashed()
    optimizer = torch.optim.Adam(module.parameters())
    gradients = {name: torch.full((2,), float(number)) for number, name in enumerate(names, 1)}
    for name, parameter in module.named_parameters():
        parameter.grad = gradients[name].clone()
    optimizer.step()
    saved = optimizer_state("critic", optimizer, module)
    again, other = torch.optim.Adam(module.parameters()), {"generator/a/exp_avg": torch.ones(2)}
    assert restore_optimizer("critic", again, module, {**other, **saved}) == []
    for name, parameter in module.named_parameters():
        # Adam's first moment after one step is (1 − β₁)·g
        torch.testing.assert_close(again.state[parameter]["exp_avg"], 0.1 * gradients[name])


def test_what_was_frozen_keeps_its_statistics_when_it_is_loaded(tmp_path: Path) -> None:
    """Also where none are calibrated in the checkpoint, and the network given is not frozen."""
    generator = Generator()
    norms = [part for part in generator.modules() if isinstance(part, nn.BatchNorm1d)]
    for norm in norms:
        norm.eval()
        assert norm.running_mean is not None
        norm.running_mean.fill_(0.5)
    train, score = {"steps": 1, "batch_size": 8}, {"metrics": []}
    made = Trainer(generator, Critic(), images(), train=train, score=score, device="cpu")
    run = made.run(tmp_path / "run")
    saved = checkpoint.latest(run.checkpoints)
    assert saved is not None
    tensors = {name: table for name, table in saved.tensors.items() if name != "calibrated"}
    checkpoint.save(run.checkpoints, Checkpoint(2, tensors, saved.state), keep=1)
    loaded = load_generator(run, generator=Generator())
    means = [part.running_mean for part in loaded.modules() if isinstance(part, nn.BatchNorm1d)]
    assert len(means) == len(norms) > 0
    assert all(torch.equal(mean, torch.full_like(mean, 0.5)) for mean in means if mean is not None)


class Reentrant(Generator):
    """Whose parameters have no gradient: no input of what it checkpoints asks for one."""

    def forward(self, z: Tensor) -> Tensor:
        made: Tensor = recompute(super().forward, z, use_reentrant=True)
        return made


@pytest.mark.filterwarnings("ignore")
def test_a_generator_that_never_had_gradients_is_told_to_resume(tmp_path: Path) -> None:
    def made(steps: int) -> Trainer:
        train = {"steps": steps, "batch_size": 8}
        score: dict[str, Any] = {"metrics": []}
        return Trainer(Reentrant(), Critic(), images(), train=train, score=score, device="cpu")

    made(2).run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="had a gradient") as caught:
        made(3).run(tmp_path / "run", resume=True)
    assert "use_reentrant=False" in str(caught.value)


def test_a_copied_run_goes_on_as_the_one_it_was_copied_from(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", 2)
    shutil.copytree(run.path, tmp_path / "copy")
    one, other = trained(run.path, 4), trained(tmp_path / "copy", 4)
    assert [record.values["critic_loss"] for record in one.read().records] == [
        record.values["critic_loss"] for record in other.read().records
    ]
