"""The learner, its plan and its settings: what is drawn, what is trained, by which rate."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import (
    TOY,
    Gan,
    Spy,
    assert_same,
    images,
    networks,
    parsed,
    records_of,
    trainer,
    weights,
)
from hypothesis import given
from hypothesis import strategies as st
from processes import together
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, Trainer, hookimpl, plugin
from gancore.distributed.ranks import Ranks
from gancore.errors import ContractError, NonFiniteError, RecipeError
from gancore.plugins import Plugins
from gancore.recipe import Recipe, Settings
from gancore.training import Run, build_trainer
from gancore.training.plan import Update, plan

pytestmark = pytest.mark.xdist_group("processes")


def settings(**changes: Any) -> Settings:
    return Settings.of(parsed(TOY, **changes))


# the plan


@given(st.integers(1, 50), st.integers(0, 10**6))
def test_a_step_is_some_critic_updates_and_one_of_the_generator(count: int, step: int) -> None:
    """Numbers of a network's updates have no gaps from step to step, and none comes twice."""
    chosen = settings(**{"train.critic_steps": count})
    *critic, last = plan(chosen, step)
    assert [update.side for update in critic] == ["critic"] * count
    assert last == Update("generator", step)
    following = [update.number for update in plan(chosen, step + 1)[:-1]]
    numbers = [update.number for update in critic] + following
    assert numbers == list(range(numbers[0], numbers[0] + 2 * count))
    assert plan(chosen, 0)[0].number == 0


def test_a_run_makes_the_updates_of_its_plan_in_that_order(tmp_path: Path) -> None:
    made: list[tuple[str, int]] = []

    @plugin
    class Watch:
        @hookimpl
        def penalty(self, step: CriticStep) -> None:
            made.append(("critic", step.update))

        @hookimpl
        def generator_penalty(self, step: GeneratorStep) -> None:
            made.append(("generator", step.update))

    train = {"steps": 2, "batch_size": 4, "critic_steps": 3}
    trainer(plugins=[Watch()], train=train).run(tmp_path / "run")
    expected = "c0 c1 c2 g0 c3 c4 c5 g1"
    assert " ".join(f"{side[0]}{number}" for side, number in made) == expected


# settings


def test_settings_are_the_recipe_s_sections() -> None:
    recipe = parsed(TOY, **{"train.ema": 0.5, "log.every": 7, "data.flip": True})
    made = Settings.of(recipe)
    for one in fields(made):
        assert getattr(made, one.name) is getattr(recipe, one.name)
    with pytest.raises(FrozenInstanceError):
        made.train = recipe.train  # type: ignore[misc]


def test_keywords_and_a_recipe_make_the_same_settings() -> None:
    sections: dict[str, Any] = {
        "train": {"steps": 7, "batch_size": 8, "ema": 0.25},
        "optimizer": {"name": "rmsprop", "lr": 0.125},
        "checkpoint": {"every": 3},
        "sample": {"every": 2, "count": 5},
        "log": {"every": 9},
        "score": {"metrics": []},
    }
    of_keywords = trainer(**sections).settings
    table = {**tomllib.loads(TOY), **sections}
    of_recipe = Settings.of(Recipe.parse(table))
    assert replace(of_keywords, data=of_recipe.data) == of_recipe
    assert of_keywords.data.name == "python:noise"
    assert of_keywords.train.ema == 0.25


@pytest.mark.parametrize(
    ("section", "table", "said"),
    [
        ("checkpoint", {"evry": 3}, r"^checkpoint: evry: unknown key\. Did you mean 'every'"),
        ("train", {}, r"^train: steps: missing"),
        ("flip", "yes", r"^data: flip: expected a valid boolean"),
    ],
)
def test_a_wrong_keyword_is_told_by_its_key_in_a_recipe(
    section: str, table: object, said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        trainer(**{section: table})


def test_plugins_are_configured_once_in_gan_run(
    gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Plugins] = []
    real = Plugins.__init__

    def counted(self: Plugins, *args: Any, **options: Any) -> None:
        made.append(self)
        real(self, *args, **options)

    monkeypatch.setattr(Plugins, "__init__", counted)
    path = tmp_path / "toy.toml"
    path.write_text(TOY)
    code, _, err = gan("run", path, f"--out={tmp_path / 'run'}", "--device=cpu")
    assert code == 0, err
    assert len(made) == 1


# what is drawn


def test_each_network_draws_every_image_once_an_epoch_in_an_order_of_its_own() -> None:
    """The orders are neither each other's nor the data set's."""
    spy = Spy()
    made = trainer(plugins=[spy], train={"steps": 1, "batch_size": 10})
    for update in range(5):
        made.critic_update(update)
        made.generator_update(update)
    numbers = {image.numpy().tobytes(): number for number, image in enumerate(images().samples)}
    orders = []
    for steps in (spy.critic_steps, spy.generator_steps):
        seen = torch.cat([step.real.detach() for step in steps])
        pixels = seen.add(1).mul(127.5).round().to(torch.uint8)
        orders.append([numbers[image.contiguous().numpy().tobytes()] for image in pixels])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]
    assert list(range(50)) not in orders


def test_half_of_the_images_are_mirrored() -> None:
    """Of 4,000, within five standard deviations; and not the same ones in each epoch."""
    spy = Spy()
    made = trainer(plugins=[spy], flip=True, train={"steps": 1, "batch_size": 50})
    for update in range(80):
        made.critic_update(update)
    originals = {image.numpy().tobytes() for image in images().samples}
    shown = torch.cat([step.real.detach() for step in spy.critic_steps])
    pixels = shown.add(1).mul(127.5).round().to(torch.uint8)
    plain = [image.contiguous().numpy().tobytes() in originals for image in pixels]
    mirrored = [image.flip(-1).contiguous().numpy().tobytes() in originals for image in pixels]
    assert [one != other for one, other in zip(plain, mirrored, strict=True)] == [True] * 4000
    assert abs(sum(mirrored) / 4000 - 0.5) < 5 * math.sqrt(0.25 / 4000)
    epochs = [tuple(mirrored[start : start + 50]) for start in range(0, 4000, 50)]
    assert len(set(epochs)) > 70


# what is trained


@pytest.mark.parametrize("side", ["critic", "generator"])
@pytest.mark.parametrize(
    ("decay", "factor"),
    [
        ("none", lambda step: 1.0),
        ("linear", lambda step: 1 - step / 4),
        ("cosine", lambda step: (1 + math.cos(math.pi * step / 4)) / 2),
    ],
)
def test_both_networks_step_by_a_rate_that_decays(
    tmp_path: Path, side: str, decay: str, factor: Callable[[int], float]
) -> None:
    """Adam's first step, β₁ = β₂ = 0, is lr·sign(gradient): the rate is what weights move by."""
    moved: list[float] = []
    made = trainer(
        train={"steps": 4, "batch_size": 4},
        optimizer={"lr": 2**-7, "decay": decay, "betas": [0, 0]},
    )
    network = made.generator if side == "generator" else made.critic
    weight = next(network.parameters())
    optimizer = made.learner.optimizers[side]  # type: ignore[index]
    before = weight.detach().clone()

    def look(*_: object) -> None:
        moved.append((weight.detach() - before).abs().max().item())
        before.copy_(weight.detach())

    optimizer.register_step_post_hook(look)
    made.run(tmp_path / "run")
    assert moved == pytest.approx([2**-7 * factor(step) for step in range(4)], rel=1e-3)


def test_a_generator_s_penalty_that_trains_nothing_breaks_the_contract() -> None:
    """It has a graph, to the critic and to the latents, but to no parameter of the generator."""

    @plugin
    class OfTheCritic:
        @hookimpl
        def generator_penalty(self, step: GeneratorStep) -> Tensor:
            assert isinstance(step.critic, nn.Module)
            assert step.latents is not None
            return step.latents.square().mean() + next(step.critic.parameters()).square().sum()

    made = trainer(plugins=[OfTheCritic()])
    before = [parameter.clone() for parameter in made.generator.parameters()]
    with pytest.raises(ContractError, match=r"generator_penalty .*no parameters of the Generator"):
        made.generator_update(0)
    assert all(map(torch.equal, before, made.generator.parameters()))


class Normed(nn.Module):
    """A critic with batch normalization: each process sees its own part of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8))
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layers(x))
        return out


def test_all_processes_have_the_same_buffers_after_each_update(tmp_path: Path) -> None:
    """Batch normalization's statistics, though each process normalizes its own samples."""

    def work() -> list[dict[str, Tensor]]:
        made = Trainer(
            networks()[0],
            Normed(),
            images(),
            train={"steps": 2, "batch_size": 8},
            score={"metrics": []},
            device="cpu",
        )
        began = weights(made.critic)
        made.critic_update(0)
        after = weights(made.critic)
        made.generator_update(0)
        return [began, after, weights(made.generator)]

    (began, *one), (_, *other) = together(work, tmp_path)
    for mine, theirs in zip(one, other, strict=True):
        assert_same(mine, theirs)
    assert not torch.equal(one[0]["layers.2.running_mean"], began["layers.2.running_mean"])


def test_what_is_set_up_is_on_the_device_and_not_trained_yet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Once a Trainer, before optimizers and checkpoint; a run calls it no second time."""
    calls: list[tuple[Any, ...]] = []
    real = Plugins.setup

    def look(self: Plugins, generator: Any, critic: Any, shape: Any, device: Any) -> None:
        calls.append((generator, critic, tuple(shape), device, weights(critic)))
        real(self, generator, critic, shape, device)

    monkeypatch.setattr(Plugins, "setup", look)
    made = trainer()
    generator, critic, shape, device, began = calls[0]
    assert (generator, critic) == (made.generator, made.critic)
    assert (shape, device) == ((1, 4, 4), torch.device("cpu"))
    made.run(tmp_path / "run")
    assert len(calls) == 1
    resumed = trainer()
    assert_same(calls[1][-1], began)
    resumed.run(tmp_path / "run", resume=True)
    assert_same(weights(resumed.critic), weights(made.critic))


# notes


@plugin
class Noting:
    """Notes the mean score of the real samples, and now and then the number of the update."""

    every: int = 1
    value: float | None = None
    state: dict[str, Any] = field(init=False, default_factory=dict)

    @hookimpl
    def penalty(self, step: CriticStep) -> None:
        mean = step.scores(step.real).mean()
        step.note("mean", mean if self.value is None else mean.detach() * 0 + self.value)
        if step.update % self.every == 0:
            step.note("update", torch.full((), float(step.update)))

    @hookimpl
    def generator_penalty(self, step: GeneratorStep) -> None:
        step.note("size", step.fake.square().mean())


def test_notes_are_terms_of_their_update_and_detached_from_it() -> None:
    made, plain = trainer(plugins={"it": Noting()}), trainer()
    values, without = made.critic_update(0), plain.critic_update(0)
    assert values.pop("note/it/mean") == pytest.approx(values["d_real"])
    assert values.pop("note/it/update") == 0
    assert values == without
    assert_same(weights(made.critic), weights(plain.critic))
    assert made.generator_update(0)["note/it/size"] > 0


def test_records_have_each_note_s_last_value(tmp_path: Path) -> None:
    """Of four critic updates and two steps; a name that the last update lacks stays."""
    train = {"steps": 2, "batch_size": 8, "critic_steps": 2}
    made = trainer(plugins={"it": Noting(every=3)}, train=train, log={"every": 1})
    records = records_of(made.run(tmp_path / "run"))
    assert [record["note/it/update"] for record in records] == [0, 3]
    for record in records:
        assert record["note/it/mean"] == pytest.approx(record["d_real"])
        assert record["note/it/size"] > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_note_that_is_not_finite_is_left_out_and_told(tmp_path: Path, value: float) -> None:
    train = {"steps": 2, "batch_size": 8}
    made = trainer(plugins={"it": Noting(value=value)}, train=train, log={"every": 1})
    records = records_of(made.run(tmp_path / "run"))
    assert all("note/it/mean" not in record for record in records)
    assert all("note/it/update" in record for record in records)
    (sentence,) = records[-1]["notes"]
    assert sentence.startswith(f"note/it/mean was {value} at step 1: records leave out")


class Drawing(nn.Module):
    """A generator whose samples are what it draws itself."""

    latent = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: Tensor) -> Tensor:
        return self.scale * torch.rand(len(z), 1, 4, 4)


def test_a_generator_draws_anew_for_each_update_and_the_same_for_one() -> None:
    _, critic = networks()
    made = Trainer(Drawing(), critic, images(), train={"steps": 1, "batch_size": 8}, device="cpu")
    fakes = [made.critic_samples(update)[1] for update in (0, 1, 0, 1)]
    assert not torch.equal(fakes[0], fakes[1])
    assert torch.equal(fakes[0], fakes[2])
    assert torch.equal(fakes[1], fakes[3])


def test_a_sampler_serves_until_the_next_update() -> None:
    learner = trainer().learner
    for update in (Update("critic", 0), Update("generator", 0)):
        before = learner.sampler()
        assert learner.sampler() is before
        learner.update(update)
        assert_same(weights(learner.sampler()), weights(learner.calibrate()))
        assert learner.sampler() is not before


def test_a_note_that_is_finite_no_longer_leaves_the_records(tmp_path: Path) -> None:
    @plugin
    class Breaking:
        @hookimpl
        def penalty(self, step: CriticStep) -> None:
            step.note("x", step.update if step.update != 1 else math.nan)

    train = {"steps": 3, "batch_size": 8, "critic_steps": 1}
    made = trainer(plugins={"it": Breaking()}, train=train, log={"every": 1})
    records = records_of(made.run(tmp_path / "run"))
    assert [record.get("note/it/x") for record in records] == [0, None, 2]


def test_notes_resume_with_the_run_and_go_with_their_plugin(tmp_path: Path) -> None:
    def made(stop: bool, **plugins: object) -> Trainer:
        train = {"steps": 2, "batch_size": 8, **({"max_seconds": 1e-9} if stop else {})}
        return trainer(plugins=plugins, train=train, log={"every": 1})

    both = {"it": Noting(every=2), "it/other": Noting(every=2)}  # a name may hold a slash
    for name in ("kept", "gone"):
        made(True, **both).run(tmp_path / name)
    kept = made(False, **both)
    record = records_of(kept.run(tmp_path / "kept", resume=True))[-1]
    assert (record["note/it/update"], record["note/it/other/update"]) == (
        0,
        0,
    )  # of the other process
    made(False, it=Noting(every=2)).run(tmp_path / "gone", resume=True, force=True)
    record = records_of(Run.open(tmp_path / "gone"))[-1]
    assert record["note/it/update"] == 0
    assert not any(key.startswith("note/it/other") for key in record)


@plugin
class OnSome:
    """Notes the index of its process everywhere, and on the second alone."""

    index: int

    @hookimpl
    def penalty(self, step: CriticStep) -> None:
        step.note("index", torch.full((), float(self.index)))
        if self.index == 1 and step.update == 1:
            step.note("second", torch.full((), 8.0))


def test_notes_are_means_over_the_processes_that_have_them(tmp_path: Path) -> None:
    def work() -> list[dict[str, float]]:
        plugins = [OnSome(index=Ranks.join(torch.device("cpu")).index)]
        made = trainer(plugins=plugins, train={"steps": 1, "batch_size": 12})
        found = [made.critic_update(update) for update in range(3)]
        return [{key: each[key] for key in each if key.startswith("note")} for each in found]

    for count in (2, 3):
        mean = {"note/on_some/index": (count - 1) / 2}
        expected = [mean, {**mean, "note/on_some/second": 8.0}, mean]
        assert together(work, tmp_path, count) == [expected] * count


def test_a_term_that_is_not_finite_still_ends_the_run() -> None:
    @plugin
    class Bad:
        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            step.note("bad", torch.full((), math.nan))
            return step.scores(step.real).mean() * math.inf

    with pytest.raises(NonFiniteError, match=r"^penalty/bad is (inf|-inf|nan) at update 0"):
        trainer(plugins=[Bad()]).critic_update(0)


def test_seconds_are_those_of_all_processes_and_max_seconds_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that each step moves by a second."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("gancore.training.session.time", clock)
    train = {"steps": 4, "batch_size": 8, "max_seconds": 1.5}
    first = trainer(train=train, log={"every": 1}).run(tmp_path / "run")
    assert [record["seconds"] for record in records_of(first)] == [1, 2]
    resumed = trainer(train=train, log={"every": 1}).run(tmp_path / "run", resume=True)
    assert [record["seconds"] for record in records_of(resumed)] == [1, 2, 3, 4]


def test_a_recipe_and_python_make_the_same_run(tmp_path: Path) -> None:
    """One by `build_trainer`, one from its networks, data and settings' keywords."""
    recipe = parsed(TOY, **{"train.ema": 0.5})
    by_recipe = build_trainer(recipe, device="cpu")
    other = build_trainer(recipe, device="cpu")
    by_python = Trainer(
        other.generator,
        other.critic,
        other.data,
        plugins={each.name: each.instance for each in other.plugins.loaded[1:]},
        device="cpu",
        **{one.name: getattr(other.settings, one.name) for one in fields(Settings)[1:]},
    )
    runs = [each.run(tmp_path / str(n)) for n, each in enumerate((by_recipe, by_python))]
    states = [each.state()[0] for each in (by_recipe, by_python)]
    assert states[0].keys() == states[1].keys() > {"ema"}
    for name in states[0]:
        assert_same(dict(states[0][name]), dict(states[1][name]))
    assert [records_of(Run.open(run.path))[-1]["d_real"] for run in runs] == [
        records_of(runs[0])[-1]["d_real"]
    ] * 2


def test_the_same_update_again_is_the_same(tmp_path: Path) -> None:
    """What an update draws and learns depends on its number alone: not on those before it."""
    counts: Counter[float] = Counter()
    for before in ((), (0,), (0, 1)):
        made = trainer(optimizer={"lr": 1e-30})
        for update in before:
            made.critic_update(update)
        counts[made.critic_update(2)["d_real"]] += 1
    assert len(counts) == 1
