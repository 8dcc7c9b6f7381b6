"""A checkpoint comes before grids and scores: what ends a run there loses no update."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from helpers import records_of, scores_of

from gancore.recipe import Recipe
from gancore.training import Run, Trainer, session
from gancore.training import build_trainer as build
from gancore.training.checkpoint import latest
from gancore.training.learner import Learner
from gancore.training.tally import Tally

RECIPE = """
[data]
name = "gaussians8"
samples = 400
[generator]
name = "mlp"
width = 8
[critic]
name = "mlp"
width = 8
[loss]
name = "wasserstein"
[train]
steps = 6
batch_size = 8
[log]
every = 4
[checkpoint]
every = 4
keep = 1
[sample]
every = 4
count = 8
[score]
metrics = ["w2"]
samples = 32
every = 3
"""


class Killed(BaseException):
    pass


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gancore.training.session.plot_curves", lambda *curves: None)


def made() -> Trainer:
    return build(Recipe.parse(tomllib.loads(RECIPE)), device="cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gancore.training.session.plot_curves", lambda *curves: None)
        return made().run(tmp_path_factory.mktemp("whole") / "run")


def untimed(run: Run) -> list[dict[str, Any]]:
    return [{**record, "seconds": 0} for record in records_of(run)]


def state(run: Run) -> dict[str, Any]:
    found = latest(run.checkpoints)
    assert found is not None
    return {**found.state, "seconds": 0}


KILLS = {
    "in the first scores": ("scores", 1, 3),
    "in the last scores": ("scores", 2, 6),
    "in a grid": ("grid", 1, 4),
    "after the last record": ("appended", 4, 6),
}


@pytest.mark.parametrize("where", KILLS)
def test_a_run_killed_in_scores_or_grids_goes_on_from_there(
    tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The records, best, notes and scores at the end are those of a run that was not killed."""
    place, at, step = KILLS[where]
    calls = 0

    def killing(real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == at and place != "appended":
                raise Killed
            out = real(*args, **kwargs)
            if calls == at:
                raise Killed
            return out

        return call

    owner: Any
    owner, name = {
        "scores": (Learner, "scores"),
        "grid": (session, "save_grid"),
    }.get(place, (Run, "append"))
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing(getattr(owner, name)))
        with pytest.raises(Killed):
            made().run(run.path)
    found = latest(run.checkpoints)
    assert found is not None
    assert found.step == step
    made().run(run.path, resume=True)
    assert untimed(run) == untimed(whole)
    assert "score/w2" in records_of(run)[1]
    assert state(run) == state(whole)
    assert scores_of(run) == scores_of(whole)
    for path in whole.path.rglob("step-*.png"):
        assert (run.path / path.relative_to(whole.path)).read_bytes() == path.read_bytes()
    names = [sorted(path.name for path in each.checkpoints.iterdir()) for each in (run, whole)]
    assert names[0] == names[1]
    again = state(run), records_of(run)
    made().run(run.path, resume=True)  # there is nothing left to do
    assert (state(run), records_of(run)) == again


@pytest.mark.parametrize("step", [3, 4])
def test_a_step_s_record_is_pending_in_its_own_checkpoint_only(step: int) -> None:
    state = {**Tally().state(), "step": 3, "pending": {"step": step, "seconds": 1.5}}
    assert Tally.of(state).pending == ({"step": 3, "seconds": 1.5} if step == 3 else None)
