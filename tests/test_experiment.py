"""From a recipe to a run and back: resume, reload, refusals."""

from __future__ import annotations

import json
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Generator, assert_same, records_of, scores_of, trainer, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

import gancore
from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.data.digits import digits
from gancore.errors import CheckpointError, GancoreError, InputError, MissingError, PluginError
from gancore.recipe import Recipe
from gancore.report import Display, save_images
from gancore.scoring.digits import DigitsExtractor
from gancore.scoring.protocol import Protocol, Scores
from gancore.scoring.sampling import generate
from gancore.training import Run, Trainer, checkpoint, load_generator, score_run
from gancore.training import build_trainer as build
from gancore.training.building import load_data, resolve
from gancore.training.learner import Learner
from gancore_gp import GradientPenalty
from gancore_lazy import Lazy
from gancore_sn import SpectralNorm

TINY = {
    "data": {"name": "digits"},
    "generator": {"name": "mlp", "width": 16, "depth": 1},
    "critic": {"name": "mlp", "width": 16, "depth": 1},
    "loss": {"name": "wasserstein"},
    "plugin": [{"name": "gp"}, {"name": "lazy", "every": 3}],
    "train": {"steps": 6, "batch_size": 16, "critic_steps": 2, "ema": 0.5},
    "checkpoint": {"every": 2},
    "log": {"every": 1},
    "sample": {"count": 4},
    "score": {"metrics": ["fid"], "samples": 64, "extractor": "digits"},
}


def tiny(**overrides: Any) -> Recipe:
    return Recipe.parse(json.loads(json.dumps(TINY)), "tiny", overrides)


@plugin
class Drift:
    """A penalty with state of both kinds: its weight and centre follow the scores."""

    count: int = field(init=False, default=0)
    centre: Tensor = field(init=False, default_factory=lambda: torch.zeros(()))

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        scores = step.scores(step.real)
        self.count += 1
        self.centre = 0.9 * self.centre + 0.1 * scores.detach().mean()
        return (scores - self.centre).square().mean() / self.count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "centre": self.centre}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.centre = state["count"], state["centre"]


class Interruption(BaseException):
    """Like KeyboardInterrupt: nothing may catch it."""


@plugin
class Bomb:
    """Interrupts the run at one place, the `at`-th time that it is reached."""

    place: str = ""
    at: int = 0
    seen: int = field(init=False, default=0)

    def reached(self, place: str) -> None:
        self.seen += place == self.place
        if place == self.place and self.seen == self.at:
            raise Interruption

    @hookimpl
    def post_step(self) -> None:
        self.reached("between critic updates")

    @hookimpl
    def generator_penalty(self, step: GeneratorStep) -> None:
        self.reached("in a generator update")

    @hookimpl
    def log(self) -> None:
        self.reached("after a record")

    def state_dict(self) -> dict[str, Any]:
        self.reached("in a save")
        return {}


def resumable(bomb: Bomb | None = None, **changes: Any) -> Trainer:
    return trainer(
        plugins={
            "gp": GradientPenalty(),
            "drift": Drift(),
            "lazy": Lazy(every=3, targets=("gp",)),
            "sn": SpectralNorm(),
            "bomb": bomb or Bomb(),
        },
        **{
            "train": {"steps": 7, "batch_size": 8, "critic_steps": 2, "ema": 0.8},
            "optimizer": {"lr": 1e-2, "decay": "cosine"},
            "checkpoint": {"every": 2},
            "log": {"every": 1},
            "flip": True,
            **changes,
        },
    )


def assert_same_runs(one: Run, other: Run) -> None:
    mine, theirs = (checkpoint.latest(run.checkpoints) for run in (one, other))
    assert mine is not None
    assert theirs is not None
    assert mine.step == theirs.step
    assert mine.tensors.keys() == theirs.tensors.keys()
    for name in mine.tensors:
        assert_same(dict(mine.tensors[name]), dict(theirs.tensors[name]))
    assert {**mine.state, "seconds": 0} == {**theirs.state, "seconds": 0}
    records = [[{**record, "seconds": 0} for record in records_of(run)] for run in (one, other)]
    assert records[0] == records[1]
    pictures = [sorted((run.path / "samples").iterdir()) for run in (one, other)]
    assert [path.read_bytes() for path in pictures[0]] == [
        path.read_bytes() for path in pictures[1]
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return resumable().run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.mark.parametrize(
    ("place", "at"),
    [
        ("between critic updates", 1),
        ("between critic updates", 7),
        ("between critic updates", 12),
        ("in a generator update", 5),
        ("after a record", 2),
        ("after a record", 5),
        ("in a save", 1),
        ("in a save", 2),
        ("in a save", 4),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, uninterrupted: Run, place: str, at: int
) -> None:
    with pytest.raises(Interruption):
        resumable(Bomb(place=place, at=at)).run(tmp_path / "run")
    resumed = resumable().run(tmp_path / "run", resume=True, force=True)
    assert_same_runs(resumed, uninterrupted)


def test_interrupted_while_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(tiny()).run(tmp_path / "whole")

    def interrupt(self: Learner, progress: object) -> None:
        raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "scores", interrupt)
        with pytest.raises(Interruption):
            build(tiny()).run(tmp_path / "run")
    assert scores_of(Run.open(tmp_path / "run")) is None
    resumed = build(tiny()).run(tmp_path / "run", resume=True)
    assert_same_runs(resumed, whole)
    assert scores_of(resumed) == scores_of(whole)
    assert scores_of(resumed) is not None


def test_scores_during_a_run_change_nothing_else(tmp_path: Path) -> None:
    plain = build(tiny()).run(tmp_path / "plain")
    scored = build(tiny(**{"score.every": 3})).run(tmp_path / "scored")
    assert [record["step"] for record in records_of(scored) if "score/fid" in record] == [3, 6]
    mine, theirs = (checkpoint.latest(run.checkpoints) for run in (plain, scored))
    assert mine is not None
    assert theirs is not None
    assert_same(dict(mine.tensors["generator"]), dict(theirs.tensors["generator"]))
    assert scores_of(scored) == scores_of(plain)
    assert scores_of(scored) is not None
    assert scores_of(scored)["scores"]["fid"] == records_of(scored)[-1]["score/fid"]


def test_every_scored_step_is_recorded_whatever_the_metric(tmp_path: Path) -> None:
    recipe = tiny(**{"score.every": 4, "score.metrics": ["isc"], "log.every": 100})
    run = build(recipe).run(tmp_path / "run")
    assert [(record["step"], "score/isc" in record) for record in records_of(run)] == [
        (1, False),
        (4, True),
        (6, False),
    ]


BY_STEP = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5}
"""What the runs below score: the best is neither the first nor the last."""


PROTOCOL = {
    "reference": {"name": "noise", "split": "all", "samples": 1},
    "samples": 1,
    "seed": 0,
    "versions": {},
}


def by_step(self: Learner, progress: object = None) -> Scores:
    step = int(self.optimizers["generator"].state[self.parameters["generator"][0]]["step"])
    scores = {"fid": BY_STEP[step], "isc": 1.0 / step}
    return Scores(scores=scores, protocol=Protocol.model_validate(PROTOCOL))


def test_the_best_step_is_marked_and_its_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "scores", by_step)
    recipe = tiny(**{"score.every": 2, "checkpoint.keep": 1, "train.steps": 8})
    run = build(recipe).run(tmp_path / "run")
    scores = {"fid": 1.5, "isc": 1 / 8}
    assert scores_of(run) == {"scores": scores, "protocol": PROTOCOL, "step": 8}
    marked = json.loads((run.checkpoints / "best.json").read_text())
    assert marked == {"step": 4, "score": "fid", "value": 1.0}
    assert sorted(path.name for path in run.checkpoints.glob("step-*")) == [
        "step-000004",
        "step-000008",
    ]
    found = checkpoint.load(run.checkpoints / "step-000004").tensors["ema"]
    best = load_generator(run, best=True).state_dict()
    assert torch.equal(best["layers.0.weight"], found["module.layers.0.weight"])
    last = load_generator(run).state_dict()
    assert not torch.equal(best["layers.0.weight"], last["layers.0.weight"])


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_an_interrupted_run_marks_the_same_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(Learner, "scores", by_step)
    monkeypatch.setitem(BY_STEP, steps, 9.0)  # the final score of the shorter run
    recipe = {"score.every": 2, "checkpoint.keep": 1}
    build(tiny(**recipe, **{"train.steps": steps})).run(tmp_path / "run")
    run = build(tiny(**recipe, **{"train.steps": 8})).run(tmp_path / "run", resume=True)
    marked = json.loads((run.checkpoints / "best.json").read_text())
    assert marked == {"step": 4, "score": "fid", "value": 1.0}
    assert checkpoint.load_best(run.checkpoints).step == 4


def test_higher_is_better_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def inception_score(self: Learner, progress: object = None) -> Scores:
        scores = by_step(self)
        return scores.model_copy(update={"scores": {"isc": scores.scores["fid"]}})

    monkeypatch.setattr(Learner, "scores", inception_score)
    run = build(tiny(**{"score.every": 2})).run(tmp_path / "run")
    assert checkpoint.load_best(run.checkpoints).step == 2


def test_a_finished_run_is_done_and_goes_on_when_steps_have_grown(tmp_path: Path) -> None:
    first = build(tiny()).run(tmp_path / "run")
    assert records_of(build(tiny()).run(tmp_path / "run", resume=True)) == records_of(first)
    grown = build(tiny(**{"train.steps": 8})).run(tmp_path / "run", resume=True)
    whole = build(tiny(**{"train.steps": 8})).run(tmp_path / "whole")
    assert [record["step"] for record in records_of(grown)] == list(range(1, 9))
    mine, theirs = (checkpoint.latest(run.checkpoints) for run in (grown, whole))
    assert mine is not None
    assert theirs is not None
    for name in mine.tensors:
        assert_same(dict(mine.tensors[name]), dict(theirs.tensors[name]))
    assert scores_of(grown) == scores_of(whole)
    with pytest.raises(InputError, match="beyond train.steps = 6"):
        build(tiny()).run(tmp_path / "run", resume=True)


def test_a_finished_run_is_scored_again_only_if_it_is_asked_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    real = Learner.scores
    monkeypatch.setattr(Learner, "scores", lambda *args: taken.append(1) or real(*args))
    run = build(tiny()).run(tmp_path / "run")
    assert scores_of(run) is not None
    assert scores_of(run)["step"] == 6
    score_run(run, run.read_recipe().score.model_copy(update={"metrics": ["isc"]}), device="cpu")
    both = scores_of(run)
    assert both["scores"].keys() == {"fid", "isc", "isc_std"}
    assert scores_of(build(tiny()).run(tmp_path / "run", resume=True)) == both
    assert len(taken) == 1
    more = build(tiny(**{"score.metrics": ["fid", "prc"]})).run(tmp_path / "run", resume=True)
    assert scores_of(more) is not None
    assert scores_of(more)["scores"].keys() == {"fid", "isc", "isc_std", "precision", "recall"}
    assert len(taken) == 2
    score_run(run, run.read_recipe().score.model_copy(update={"samples": 65}), device="cpu")
    again = build(tiny()).run(tmp_path / "run", resume=True)
    assert scores_of(again) == {**both, "scores": {"fid": both["scores"]["fid"]}}
    assert len(taken) == 3


def test_other_weights_of_the_extractor_are_other_scores(tmp_path: Path) -> None:
    run = build(tiny()).run(tmp_path / "run")
    before = scores_of(run)
    bundled = load_file(DigitsExtractor.DEFAULT_WEIGHTS)
    save_file({key: 2 * each for key, each in bundled.items()}, tmp_path / "others.safetensors")
    others = {"score.weights": str(tmp_path / "others.safetensors")}
    again = build(tiny(**others)).run(tmp_path / "run", resume=True)
    assert before is not None
    assert scores_of(again) is not None
    assert scores_of(again)["scores"] != before["scores"]
    assert scores_of(again)["protocol"]["weights_sha256"] != before["protocol"]["weights_sha256"]


def test_time_that_is_over_with_the_last_step_is_enough_to_score(tmp_path: Path) -> None:
    one = {"train.steps": 1, "train.max_seconds": 1e-9}
    assert scores_of(build(tiny(**one)).run(tmp_path / "run")) is not None


def test_a_stop_while_it_is_scored_leaves_a_run_to_be_scored(tmp_path: Path) -> None:
    class Stopping(Display):
        told: list[str] = []

        def say(self, line: str) -> None:
            self.told.append(line)

        def count(self, what: str, done: int, total: int) -> None:
            if what == "scoring":
                stopped.stop("stopped by SIGTERM")

    stopped = build(tiny())
    run = stopped.run(tmp_path / "run", display=Stopping())
    assert scores_of(run) is None
    assert [line for line in Stopping.told if "--resume" in line] == [
        f"stopped by SIGTERM: trained, and saved in {run.path}, but not scored: go on with --resume"
    ]
    whole = build(tiny()).run(tmp_path / "whole")
    assert scores_of(build(tiny()).run(tmp_path / "run", resume=True)) == scores_of(whole)
    assert_same_runs(run, whole)


@pytest.mark.parametrize("broken", ["not json", '{"step": 2}', "\0" * 99, "b\udcff\udcfe"])
def test_a_broken_record_is_left_out_and_told(tmp_path: Path, broken: str) -> None:
    run = build(tiny(**{"train.steps": 4, "score.metrics": []})).run(tmp_path / "run")
    lines = run.metrics_path.read_text().splitlines()
    lines[1] = broken
    text = "\n".join([*lines, ""])
    run.metrics_path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"line 2: expected finite .* --resume leaves it out"):
        _ = list(run.read_records())

    class Telling(Display):
        told: list[str] = []

        def say(self, line: str) -> None:
            self.told.append(line)

    build(tiny(**{"score.metrics": []})).run(run.path, resume=True, display=Telling())
    assert [record["step"] for record in records_of(run)] == [1, 3, 4, 5, 6]
    assert len([line for line in Telling.told if "line 2: expected finite" in line]) == 1
    Telling.told.clear()
    run.metrics_path.write_bytes((f"{broken}\n" * 3).encode(errors="surrogateescape"))
    build(tiny(**{"score.metrics": []})).run(run.path, resume=True, display=Telling())
    assert records_of(run) == []
    (line,) = [line for line in Telling.told if "expected finite" in line]
    assert "line 1: " in line
    assert line.endswith("leaves it out, and 2 more")
    Telling.told.clear()


def test_resume_without_a_checkpoint_starts_fresh(tmp_path: Path) -> None:
    run = build(tiny(**{"score.metrics": []})).run(tmp_path / "run", resume=True)
    assert records_of(run)[-1]["step"] == 6


def test_a_changed_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    build(tiny(**{"score.metrics": []})).run(tmp_path / "run")
    changed = tiny(**{"plugin.0.weight": 5.0, "optimizer.lr": 1e-3, "train.steps": 8})
    with pytest.raises(InputError) as caught:
        build(changed).run(tmp_path / "run", resume=True)
    message = str(caught.value)
    assert "plugin.0.weight: was 10.0, is 5.0" in message
    assert "optimizer.lr: was 0.0002, is 0.001" in message
    assert "train.steps" not in message
    assert "--force" in message
    assert (
        records_of(build(changed).run(tmp_path / "run", resume=True, force=True))[-1]["step"] == 8
    )


def test_the_resolved_recipe_repeats_the_run(tmp_path: Path) -> None:
    first = gancore.run(tiny(), tmp_path / "first", device="cpu")
    again = gancore.run(first.recipe_path, tmp_path / "again", device="cpu")
    assert_same_runs(again, first)
    assert scores_of(again) == scores_of(first)
    assert first.read_table()["plugin"][0] == {
        "name": "gp",
        "weight": 10.0,
        "target": 1.0,
        "one_sided": False,
    }


def test_a_run_finds_its_data_again_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    save_images(digits().samples[:80], Path("pictures"))
    recipe = tiny(
        **{"data.name": "folder", "data.path": "pictures", "data.size": 8, "data.channels": 1}
    )
    run = build(recipe).run(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = score_run(run, run.read_recipe().score, device="cpu")
    assert again.table() == scores_of(run)
    assert run.read_table()["data"]["path"] == str(tmp_path / "pictures")


@pytest.mark.parametrize("name", ["2024-01-01 10:00:00", "1_000", "nan"])
def test_a_folder_is_found_by_the_name_that_was_typed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_images(digits().samples[:3], Path(name))
    recipe = Recipe.parse(TINY, "tiny", [f"data.path={name}", "data.name=folder"])
    recipe = recipe.without(["lazy"])
    assert len(load_data(recipe)) == 3
    assert resolve(recipe)["data"]["path"] == str(tmp_path / name)


def test_the_seed_decides_the_numbers_and_the_plugins_do_not(tmp_path: Path) -> None:
    """Runs of one seed share initial weights and data order whatever their plugins."""
    one, other, third = (
        build(recipe)
        for recipe in (tiny(), tiny(**{"plugin.0.name": "r1"}), tiny(**{"train.seed": 1}))
    )
    assert_same(weights(one.generator), weights(other.generator))
    assert_same(weights(one.critic), weights(other.critic))
    assert not torch.equal(*(next(t.generator.parameters()) for t in (one, third)))


def test_load_generator_is_the_generator_that_was_scored(tmp_path: Path) -> None:
    made = build(tiny())
    run = made.run(tmp_path / "run")
    expected = generate(made.sampler(), 10, seed=0)
    assert torch.equal(generate(load_generator(run), 10, seed=0), expected)
    assert torch.equal(generate(gancore.load_generator(run.path), 10, seed=0), expected)


def test_load_generator_of_a_run_from_python(tmp_path: Path) -> None:
    made = trainer(train={"steps": 2, "batch_size": 4, "ema": 0.5})
    run = made.run(tmp_path / "run")
    with pytest.raises(PluginError, match="generator="):
        load_generator(run)
    loaded = load_generator(run, generator=Generator())
    assert_same(weights(loaded), weights(made.sampler()))


def test_load_generator_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run folder"):
        load_generator(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        load_generator(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        (
            "data.name",
            "digit",
            MissingError,
            "no dataset 'digit' is installed. Did you mean 'digits'",
        ),
        ("critic.name", "vit", MissingError, "no critic 'vit'"),
        ("critic.widht", 3, PluginError, "critic: widht: unknown key. Did you mean 'width'"),
        ("generator.width", 10**9, PluginError, "generator: width: expected less than"),
        ("plugin.0.weight", -1, PluginError, "plugin.0: weight: expected greater than 0, got -1"),
        ("critic.name", "wgan_critic", PluginError, "critic: .*32"),
        ("loss.name", "gp", PluginError, "exactly one loss"),
    ],
)
def test_what_a_recipe_names_must_be_there_and_fit(
    key: str, value: Any, error: type[GancoreError], message: str
) -> None:
    table = json.loads(json.dumps(TINY))
    if key == "critic.name":
        table["critic"] = {}
    if key == "loss.name":
        table["plugin"] = []
    with pytest.raises(error, match=message):
        build(Recipe.parse(table, "tiny", {key: value}))
