"""Notes: what a run notices of itself, told in terminal, scores, records, report and board."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from boards import board, job
from helpers import (
    DIGITS,
    LATENT,
    Critic,
    Gan,
    Generator,
    images,
    networks,
    parsed,
    records_of,
    scores_of,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gancore import Trainer, hookimpl
from gancore.data import Dataset
from gancore.errors import InputError
from gancore.leaderboard.evaluate import evaluate
from gancore.leaderboard.result import RunNote
from gancore.leaderboard.text import markdown, notes
from gancore.report import Display
from gancore.report.page import Page, Section
from gancore.report.writer import write_report
from gancore.scoring.protocol import Protocol, RealSamples, Scores
from gancore.training import Run
from gancore.training import build_trainer as build
from gancore.training.learner import Learner
from gancore.training.notes import FIRST, STILL, ZERO, Notes, noticed
from gancore.training.tally import Tally


class Told(Display):
    """Keeps the lines that are said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @property
    def notes(self) -> list[str]:
        return [line.removeprefix("note: ") for line in self.lines if line.startswith("note: ")]


def ran(folder: Path, *, display: Display | None = None, **changes: Any) -> list[str]:
    """Return what the last record of a run of 3 updates, without scores, has for notes."""
    generator, critic = networks()
    sections: dict[str, Any] = {
        "generator": generator,
        "critic": critic,
        "data": images(),
        "train": {"steps": 3, "batch_size": 16},
        "score": {"metrics": []},
        "device": "cpu",
        **changes,
    }
    made = Trainer(
        sections.pop("generator"), sections.pop("critic"), sections.pop("data"), **sections
    )
    run = made.run(folder / "run", display=display)
    assert all("notes" not in record for record in records_of(run)[:-1])
    found: list[str] = records_of(run)[-1].get("notes", [])
    return found


def watching(data: Dataset | None = None, **tally: Any) -> tuple[Notes, list[str]]:
    said: list[str] = []
    return Notes({}, data or images(), Tally(**tally), said.append), said


@pytest.fixture
def pictureless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a report its pictures."""
    for name in ("_samples", "_critic"):
        monkeypatch.setattr(f"gancore.report.writer.{name}", lambda *given: Section(""))
    monkeypatch.setattr("gancore.report.pictures.curve_figures", lambda records, **options: {})


def test_a_run_that_learns_nothing_says_so_everywhere(
    tmp_path: Path, gan: Gan, pictureless: None
) -> None:
    """With lr = 3 the generator's tanh is at its ends: no variance, no gradient, all saved."""
    recipe = tmp_path / "wild.toml"
    recipe.write_text(DIGITS.replace("steps = 3", f"steps = {STILL + 2}") + "[optimizer]\nlr = 3\n")
    code, out, _ = gan("run", recipe, "--out", tmp_path / "run")
    assert code == 0
    run = Run(tmp_path / "run")
    assert scores_of(run) is not None
    told = scores_of(run)["notes"]
    assert [sentence.split(":")[0].split(" (")[0] for sentence in told] == [
        "The generator had no gradient",
        "The generator has collapsed",
        f"The generator's images are saturated at step {STILL + 2}",
    ]
    assert all(out.count(f"note: {sentence}") == 2 for sentence in told)  # at once, and at the end
    assert "notes" not in records_of(run)[-1]
    gan("score", run.path, "--samples", 100)
    assert scores_of(run)["protocol"]["samples"] == 100
    assert scores_of(run)["notes"] == told
    assert gan("report", run.path)[0] == 0
    html = run.report_path.read_text()
    assert all(sentence.replace("'", "&#39;") in html for sentence in told)


def test_a_run_that_learns_says_nothing(tmp_path: Path) -> None:
    display = Told()
    run = build(parsed(DIGITS, **{"train.steps": FIRST + 2})).run(tmp_path / "run", display=display)
    assert scores_of(run) is not None
    assert "notes" not in scores_of(run)
    assert display.notes == []


@pytest.mark.parametrize(
    ("widest", "spread", "collapsed"),
    [
        (1.0, 0.099, True),
        (1.0, 0.101, False),
        (0.08, 0.07, False),  # hardly trained
        (0.08, 0.039, True),
        (0.0, 0.05, False),
        (0.0, 5e-5, False),  # small initial weights, from which it grows
        (0.0, 1e-9, True),
        (0.0, math.nan, False),
    ],
)
def test_a_collapse_is_a_lost_variance(widest: float, spread: float, collapsed: bool) -> None:
    watch, said = watching(widest=widest)
    watch.spread(spread, 7)
    assert len(said) == collapsed
    assert all("collapsed: at step 7" in line for line in said)


def test_a_collapse_that_is_over_is_no_note_but_was_said() -> None:
    watch, said = watching()
    for spread in (0.5, 0.01, 0.011, 0.4):
        watch.spread(spread, 1)
    assert len(said) == 1
    assert watch.sentences == []
    watch.spread(0.01, 2)
    assert len(said) == 2
    assert len(watch.sentences) == 1


def test_points_that_diverge_are_told_and_images_can_not() -> None:
    points = Dataset("points", torch.randn(100, 2))
    for data, spread, told in ((points, 101.0, 1), (points, 99.0, 0), (images(), 101.0, 0)):
        watch, said = watching(data)
        watch.spread(spread, 1)
        assert len(said) == told


def test_a_grid_s_spread_is_the_ratio_of_total_variances() -> None:
    """Half 100 and half 110 in each pixel is a variance of 25; the data's 0 and 200 one of 10⁴."""
    data = Dataset("two", torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1))
    grid = torch.tensor([100, 110], dtype=torch.uint8).repeat(8).view(16, 1, 1, 1)
    watch, said = watching(data, widest=1.0)
    watch.grid(grid[:15], 3)
    assert said == []  # too few to tell
    watch.grid(grid, 3)
    assert "0.0025 of the real data's variance" in said[0]


def test_the_untrained_spread_is_that_of_the_first_samples_in_pixels() -> None:
    """±100 in units of 127.5 are the data's 0 and 200, moved; later samples do not count."""
    data = Dataset("two", torch.tensor([0, 200], dtype=torch.uint8).view(2, 1, 1, 1))
    fake = torch.tensor([-100 / 127.5, 100 / 127.5]).repeat(8).view(16, 1, 1, 1)
    watch, _ = watching(data)
    watch.samples(fake[:15], 0)
    assert watch.tally.widest == 0
    watch.samples(fake, 0)
    watch.samples(2 * fake, 0)
    assert watch.tally.widest == pytest.approx(1.0)


@pytest.mark.parametrize(("between", "told"), [(0, True), (4, True), (6, False), (50, False)])
def test_saturated_is_less_than_a_tenth_of_the_data_s_values_between(
    between: int, told: bool
) -> None:
    """Half of the data's values are between black and white: 5 % of the samples' have to be."""
    values = torch.tensor([0, 255, 9, 200], dtype=torch.uint8)
    data = Dataset("half", values.repeat(25).view(100, 1, 1, 1))
    grid = torch.tensor([0, 255] * 50, dtype=torch.uint8)
    grid[:between] = 77
    watch, said = watching(data)
    watch.grid(grid.view(100, 1, 1, 1), 3)
    assert len(said) == told
    assert all("saturated at step 3" in line for line in said)


def test_black_and_white_data_are_no_saturation() -> None:
    values = torch.tensor([0, 255] * 50, dtype=torch.uint8).view(100, 1, 1, 1)
    watch, said = watching(Dataset("bits", values))
    watch.grid(values, 3)
    assert said == []


def test_a_gradient_of_zero_is_told_after_as_many_updates_in_a_row() -> None:
    watch, said = watching()
    for step in range(STILL - 1):
        watch.norm(step, 0.0)
    watch.norm(STILL, 2 * ZERO)
    for step in range(STILL - 1):
        watch.norm(step, ZERO / 2)
    assert said == []
    resumed = Notes(
        {}, images(), Tally.of(json.loads(json.dumps(watch.tally.state()))), said.append
    )
    resumed.norm(50, 0.0)
    assert len(said) == 1
    assert "up to step 50" in said[0]
    resumed.norm(51, 0.0)
    assert len(said) == 1


def test_scores_taken_while_it_trains_tell_a_collapse_at_their_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RealSamples(name="noise", split="all", samples=1)
    protocol = Protocol(reference=real, samples=1, seed=0, versions={})
    spreads = iter([0.9, 0.01, 0.8])

    def scores(self: Learner, progress: Any = None) -> Scores:
        return Scores(scores={"fid": 1.0}, protocol=protocol, spread=next(spreads))

    monkeypatch.setattr(Learner, "scores", scores)
    display = Told()
    changes = {"score.every": 1, "sample.count": 4}  # too few to judge
    run = build(parsed(DIGITS, **changes)).run(tmp_path / "run", display=display)
    assert len(display.notes) == 1
    assert "collapsed: at step 2 its samples have 0.01" in display.notes[0]
    assert scores_of(run) is not None
    assert "notes" not in scores_of(run)


class Idle(Critic):
    """With five parameters that no score depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.ParameterList([torch.zeros(2) for _ in range(5)])


class Checkpointed(Critic):
    """Checkpoints its first layer in its own updates; in the generator's that would raise."""

    def forward(self, x: Tensor) -> Tensor:
        made_by = x.grad_fn.next_functions[0][0] if x.grad_fn else None
        if made_by is None or "AccumulateGrad" not in made_by.name():  # no copy of a leaf
            return super().forward(x)
        hidden = checkpoint(self.layers[:2], x, use_reentrant=True)
        out: Tensor = self.layers[2:](hidden)
        return out


class Detaching(Critic):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class Unused(Generator):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)


def test_parameters_without_gradient_are_named(tmp_path: Path) -> None:
    display = Told()
    (told,) = ran(tmp_path, critic=Idle(), display=display)
    assert told.startswith("5 of the critic's 9 parameters had no gradient in its first updates")
    assert "spare.0, spare.1, spare.2, …." in told
    assert display.notes == [told]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_layers_in_a_reentrant_checkpoint_are_named(tmp_path: Path) -> None:
    (told,) = ran(tmp_path, critic=Checkpointed())
    assert "2 of the critic's 4 parameters" in told
    assert "layers.1.weight, layers.1.bias. " in told


def test_a_generator_s_unused_parameters_are_named(tmp_path: Path) -> None:
    (told,) = ran(tmp_path, generator=Unused())
    assert "2 of the generator's 7 parameters" in told
    assert "unused.weight, unused.bias." in told


def test_a_generator_that_never_gets_a_gradient_is_named(tmp_path: Path) -> None:
    (told,) = ran(tmp_path, critic=Detaching())
    assert told.startswith("No parameter of the generator had a gradient")


def test_one_gradient_in_the_first_updates_is_enough() -> None:
    layer = nn.Linear(2, 1)
    for late, told in ((FIRST - 1, 0), (FIRST, 1)):
        said: list[str] = []
        watch = Notes({"critic": layer}, images(), Tally(), said.append)
        for update in range(FIRST + 3):
            bias = layer.bias if update == late else None
            watch.gradients("critic", update, [True, bias is not None])
            assert len(said) == (told if update >= FIRST - 1 else 0)
        watch.finish()
        assert len(said) == told


def test_frozen_parameters_are_none_that_should_train(tmp_path: Path) -> None:
    generator = Generator()
    generator.layers[0].weight.requires_grad_(False)
    assert ran(tmp_path, generator=generator) == []


class Ending(nn.Module):
    """Ends in another function than tanh."""

    latent = LATENT

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(LATENT, 16), end

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.end(self.layer(z))
        return out.view(-1, 1, 4, 4)


@pytest.mark.parametrize(("end", "told"), [(nn.Sigmoid(), 1), (nn.ReLU(), 1), (nn.Tanh(), 0)])
def test_a_generator_made_for_0_to_1_is_told(tmp_path: Path, end: nn.Module, told: int) -> None:
    found = ran(tmp_path, generator=Ending(end))
    assert len(found) == told
    assert all("in [−1, 1]: let it end in tanh, or return 2·x − 1" in each for each in found)


def test_the_range_is_told_after_the_first_updates_of_the_generator(tmp_path: Path) -> None:
    display = Told()
    steps: list[int] = []
    display.advance = lambda step, values: steps.append(step) if display.notes else None  # type: ignore[method-assign]
    train = {"steps": FIRST + 3, "batch_size": 4, "critic_steps": 2}
    ran(tmp_path, generator=Ending(nn.Sigmoid()), display=display, train=train)
    assert steps[0] == FIRST + 1


def test_one_value_below_0_in_the_first_updates_is_enough() -> None:
    watch, said = watching()
    for step in range(FIRST):
        watch.samples(torch.full((2, 1, 4, 4), -1e-3 if step == 5 else 0.5), step)
    watch.finish()
    assert said == []


@pytest.mark.parametrize(
    "data",
    [
        Dataset(
            "light", torch.arange(128, 144, dtype=torch.uint8).view(1, 1, 4, 4).repeat(8, 1, 1, 1)
        ),
        Dataset("points", torch.rand(40, 16)),
    ],
    ids=["light", "points"],
)
def test_no_range_is_told_of_data_without_dark(data: Dataset) -> None:
    watch, said = watching(data)
    watch.samples(torch.rand(8, *data.shape), 0)
    watch.finish()
    assert said == []


def test_notes_survive_a_stop_and_a_resume(tmp_path: Path) -> None:
    """The critic's first updates are over by the stop, and so nothing tells it again."""

    class Stopping(Told):
        def advance(self, step: int, values: Any) -> None:
            if step == FIRST:
                made.stop("test")

    def make() -> Trainer:
        torch.manual_seed(0)
        train = {"steps": FIRST + 2, "batch_size": 4, "critic_steps": 2}
        return trainer_of(Idle(), train)

    made = make()
    first = Stopping()
    run = made.run(tmp_path / "run", display=first)
    assert records_of(run)[-1]["step"] < FIRST + 2
    assert noticed(json.loads(state_path(run).read_text()), None) == first.notes
    again = Told()
    made = make()
    made.run(tmp_path / "run", resume=True, display=again)
    assert records_of(run)[-1]["notes"] == first.notes
    assert len(first.notes) == 1
    assert again.notes == []


def trainer_of(critic: nn.Module, train: dict[str, Any]) -> Trainer:
    score = {"metrics": []}
    return Trainer(Generator(), critic, images(), train=train, score=score, device="cpu")


def state_path(run: Run) -> Path:
    return max(run.checkpoints.glob("step-*")) / "state.json"


def test_a_report_of_a_run_without_scores_has_its_notes_once(
    tmp_path: Path, pictureless: None
) -> None:
    (told,) = ran(tmp_path, critic=Idle())
    run = Run(tmp_path / "run")
    run.write_recipe(parsed(DIGITS).table())  # one that a report can read
    write_report(run)
    assert run.report_path.read_text().count(told.replace("'", "&#39;")) == 1


def test_plugins_get_numbers_alone(tmp_path: Path) -> None:
    class Logger:
        records: list[Any] = []

        @hookimpl
        def log(self, record: Any) -> None:
            self.records.append(record)

    ran(tmp_path, critic=Idle(), plugins=[Logger()])
    assert all("notes" not in record for record in Logger.records)
    assert Logger.records


@pytest.mark.parametrize("odd", ['"text"', "[1]", '["\\u001b[2J"]', f'["{"x" * 1001}"]'])
def test_odd_notes_of_a_stranger_s_record_are_refused(tmp_path: Path, odd: str) -> None:
    run = Run(tmp_path)
    run.metrics_path.write_text(f'{{"step": 1, "seconds": 1, "notes": {odd}}}\n')
    with pytest.raises(InputError, match="line 1"):
        _ = list(run.read_records())


def test_the_notes_of_a_board_s_runs(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "gp", 0, 3.0), job(tmp_path, "gp", 1, 3.0, notes=["It sat | still."])]
    result = evaluate(board({"gp": "penalty"}, [0, 1]), jobs, {})
    assert result.entries[0].notes == (RunNote(seed=1, note="It sat | still."),)
    assert "penalty, seed 1: It sat | still." in notes(result)
    assert r"penalty, seed 1: It sat \| still." in markdown(result)


def test_a_page_s_notes_are_escaped() -> None:
    page = Page("t", "", {}, "", [], "", {}, {}, notes=["<b>It</b> sat still."])
    assert "&lt;b&gt;It&lt;/b&gt; sat still." in page.html()


def test_dark_images_of_small_weights_are_not_taken_for_a_sigmoids() -> None:
    """A generator that ends in tanh, over a bias above 0: [0.066, 0.086] for its first updates."""
    watch, said = watching()
    for step in range(FIRST):
        watch.samples(torch.linspace(0.066, 0.086, 16 * 16).view(16, 1, 4, 4), step)
    watch.finish()
    assert said == []


def test_data_without_variance_have_no_share_of_it() -> None:
    said: list[str] = []
    data = Dataset("one", torch.ones(20, 2))
    watch = Notes({}, data, Tally(), said.append)
    watch.samples(torch.randn(20, 2), 0)
    watch.grid(torch.randn(20, 2), 1)
    real = RealSamples(name="one", split="all", samples=20)
    protocol = Protocol(reference=real, samples=20, seed=0, versions={})
    scores = Scores(scores={"w2": 1.0}, protocol=protocol, spread=1e11)
    assert watch.scored(scores, 1) == scores.model_copy(update={"step": 1})
    assert said == []
