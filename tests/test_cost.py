"""Costs: counts against arithmetic, lazy penalties on the mean, ratios to the bare update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import trainer
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from gancore import CriticStep, cost, hookimpl, plugin
from gancore.cost import Counts, due_shares, measure
from gancore.recipe import Recipe
from gancore_gp import GradientPenalty
from gancore_lazy import Lazy
from gancore_r1 import R1
from gancore_r2 import R2

B, IN, WIDTH, OUT = 16, 64, 32, 1
LAYERS = [(IN, WIDTH), (WIDTH, WIDTH), (WIDTH, OUT)]
"""Of an MLP critic on 8×8 images."""


def recipe(*plugins: dict[str, Any], **sections: Any) -> Recipe:
    return Recipe.parse(
        {
            "data": {"name": "digits"},
            "generator": {"name": "mlp", "width": 8, "depth": 1},
            "critic": {"name": "mlp", "width": WIDTH, "depth": 2},
            "loss": {"name": "wasserstein"},
            "plugin": list(plugins),
            "train": {"steps": 1, "batch_size": B},
            **sections,
        }
    )


def products(layers: list[tuple[int, int]]) -> int:
    """FLOPs of one matrix product a layer, for one half of the batch: 2 a multiply-add."""
    return sum(2 * B * one * other for one, other in layers)


BARE = {"name": "dcgan", "norm": "none"}
RESNET = {"name": "resnet", "width": 32}
SEEDS = {"name": "wgan_critic", "feature_maps": 32}

F = products(LAYERS)
"""A forward pass of one half; so are its gradients by all weights, and by all inputs."""


def test_matrix_products_and_convolutions_are_counted_exactly() -> None:
    conv = nn.Conv2d(3, 5, 4, stride=2, padding=1)
    images = torch.randn(7, 3, 8, 8, requires_grad=True)
    with Counts() as counts:
        out = conv(images).sum()
        forward = counts.flops.total()
        torch.autograd.backward(out)
    assert forward == 2 * 7 * 5 * 4 * 4 * 3 * 4 * 4
    assert counts.flops.total() == 3 * forward
    assert counts.operations["aten.convolution"] == 1
    assert counts.operations["aten.convolution_backward"] == 1


def test_the_peak_is_of_what_is_alive_together() -> None:
    with Counts() as counts:
        one = torch.ones(100, 100)
        two = one @ one
        del one
        three = two @ two
        view = three.view(-1)
        three.add_(1)
        del two
    assert counts.peak == 2 * 4 * 100 * 100
    assert view.numel() == 10_000


def test_an_update_without_a_penalty_is_six_passes_but_for_the_samples_gradients() -> None:
    """Two halves of a forward pass and the gradients by weights and by the layers' inputs."""
    found = measure({"none": recipe()}, device="cpu", rounds=1)["none"]
    assert found.flops == 2 * (F + F + products(LAYERS[1:]))


def test_r1_adds_the_gradient_by_the_samples_and_the_way_back_through_it() -> None:
    """It shares its forward pass with the loss.

    The gradient by the samples is a product a layer. Of the way back through that there are two a
    layer, by its weights and by what came into it, but the last layer's comes from a constant.
    """
    found = measure({"r1": recipe({"name": "r1"})}, device="cpu", rounds=1)["r1"]
    bare = 2 * (F + F + products(LAYERS[1:]))
    assert found.flops == bare + F + F + products(LAYERS[:-1])
    assert found.flops_ratio == pytest.approx(found.flops / bare)


def test_the_gradient_penalty_adds_a_forward_pass_its_gradient_and_the_way_back() -> None:
    """Nothing goes through its forward pass a second time: ReLU's second derivative is no edge.

    To the interpolates' forward pass and gradient comes the way back through the latter as of R1.
    """
    found = measure({"gp": recipe({"name": "gp"})}, device="cpu", rounds=1)["gp"]
    bare = 2 * (F + F + products(LAYERS[1:]))
    assert found.flops == bare + F + F + F + products(LAYERS[:-1])


def test_smooth_critics_pay_for_their_curvature() -> None:
    """What is above can fail: tanh has a second derivative, which has to be followed."""
    flops = []
    for activation in (nn.ReLU, nn.Tanh):
        made = trainer(plugins=[GradientPenalty()])
        made.critic.layers[2] = activation()  # type: ignore[index, operator]
        samples = made.critic_samples(0)
        with Counts() as counts:
            made.update_critic(0, *samples)
        flops.append(counts.flops.total())
    assert flops[1] > flops[0]


@pytest.mark.parametrize("every", [2, 16, 300])
def test_lazy_costs_its_share(every: int) -> None:
    steps = {"train": {"steps": 5, "critic_steps": 240, "batch_size": B}}
    recipes = {
        "eager": recipe({"name": "r1"}, **steps),
        "lazy": recipe({"name": "r1"}, {"name": "lazy", "every": every}, **steps),
        "none": recipe(**steps),
    }
    found = {name: cost.flops for name, cost in measure(recipes, device="cpu", rounds=1).items()}
    expected = found["none"] + (found["eager"] - found["none"]) / every
    assert found["lazy"] == pytest.approx(expected)


LAZY = {"name": "lazy", "every": 4}


def test_the_memory_of_a_run_is_that_of_its_greediest_update() -> None:
    """R1's, wherever it is due: of an update without it, memory is what a bare one takes."""
    steps = {"train": {"steps": 8, "batch_size": B}}
    recipes = {
        "none": recipe(**steps),
        "eager": recipe({"name": "r1"}, **steps),
        "lazy": recipe({"name": "r1"}, LAZY, **steps),
    }
    costs = measure(recipes, device="cpu", rounds=1)
    assert costs["lazy"].memory == costs["eager"].memory > costs["none"].memory
    # two halves of a batch: hidden values of three layers, and what each needs for the way back
    assert costs["none"].memory >= 2 * 4 * B * (WIDTH + WIDTH + OUT)
    for name in ("eager", "lazy"):
        ratio = costs[name].memory / costs["none"].memory
        assert costs[name].memory_ratio == pytest.approx(ratio)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is one second on at each look, and goes on by others' doing; its time."""
    now = [0.0]

    def look() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(cost.time, "perf_counter", look)
    return now


def test_times_are_medians_of_ratios_to_the_bare_update_right_before(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare update takes 1 s by this clock; R1's gradient 2 s more, and once 30."""
    gradient = CriticStep.input_gradient

    def slow(step: CriticStep, x: torch.Tensor) -> torch.Tensor:
        clock[0] += next(extra, 0.0)
        return gradient(step, x)

    # once to count, once to probe, then in three rounds
    extra = iter([0.0, 0.0, 2.0, 30.0, 2.0])
    monkeypatch.setattr(CriticStep, "input_gradient", slow)
    costs = measure({"none": recipe(), "r1": recipe({"name": "r1"})}, device="cpu", rounds=3)
    assert next(extra, None) is None
    assert (costs["none"].seconds, costs["none"].time_ratio) == (1.0, 1.0)
    assert (costs["r1"].seconds, costs["r1"].time_ratio) == (3.0, 3.0)


def test_the_time_of_a_lazy_penalty_is_shared_out(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = CriticStep.input_gradient

    def slow(step: CriticStep, x: torch.Tensor) -> torch.Tensor:
        clock[0] += 8.0
        return gradient(step, x)

    monkeypatch.setattr(CriticStep, "input_gradient", slow)
    steps = {"train": {"steps": 8, "batch_size": B}}
    recipes = {"none": recipe(**steps), "lazy": recipe({"name": "r1"}, LAZY, **steps)}
    costs = measure(recipes, device="cpu", rounds=2)
    assert costs["lazy"].seconds == costs["lazy"].time_ratio == 1.0 + 8.0 / 4
    assert costs["lazy"].flops_ratio < 1.3


@plugin
class From:
    """Penalties are due from an update on."""

    first: int = 0

    @hookimpl
    def penalty_scale(self, plugin: str, update: int) -> float:
        return 1.0 + update if update >= self.first else 0.0


def shares(plugins: Any, updates: int, critic_steps: int = 1) -> dict[int, float]:
    steps = {"steps": updates // critic_steps, "critic_steps": critic_steps, "batch_size": 2}
    return due_shares(trainer(plugins=plugins, train=steps))


def test_what_is_due_is_counted_over_all_updates_of_the_run() -> None:
    """A penalty that starts at update 1,000 of 4,000 is 3/4 of the whole, and a ramp is one set."""
    assert shares([R1(), From(first=1000)], 4000, critic_steps=4) == {0: 1 / 4, 1000: 3 / 4}
    assert shares([R1(), From(first=5000)], 4000) == {0: 1.0}
    assert shares([R1(), Lazy(every=300)], 1000) == {0: 4 / 1000, 1: 996 / 1000}  # 0, 300, 600, 900
    plugins = {
        "r1": R1(),
        "r2": R2(),
        "a": Lazy(every=4, targets=("r1",)),
        "b": Lazy(every=2, targets=("r2",)),
    }
    assert shares(plugins, 4) == {0: 1 / 4, 1: 1 / 2, 2: 1 / 4}
    assert shares(plugins, 6) == {0: 2 / 6, 1: 3 / 6, 2: 1 / 6}  # not a whole number of periods
    assert shares([R1()], 6) == shares([], 6) == shares([R1()], 0) == {0: 1.0}


def test_of_a_longer_run_so_many_updates_are_asked_at_random(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Equal steps through a run would meet a lazy penalty always or never."""
    monkeypatch.setattr(cost, "MOST_ASKED", 2000)
    found = shares([R1(), Lazy(every=4)], 8000)
    share = sum(part for update, part in found.items() if update % 4 == 0)
    assert share == pytest.approx(1 / 4, abs=4 * (3 / 16 / 2000) ** 0.5)  # four deviations
    assert sum(found.values()) == pytest.approx(1.0)
    late = shares([R1(), From(first=6000)], 8000)
    assert sorted(late.values()) == [1 / 4, 3 / 4]


def test_rare_sets_count_as_the_one_most_like_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 updates r1 is due in 4, r2 in 3, both at 0 alone: nearest to that is r1's own set."""
    plugins = {
        "r1": R1(),
        "r2": R2(),
        "a": Lazy(every=3, targets=("r1",)),
        "b": Lazy(every=4, targets=("r2",)),
    }
    assert shares(plugins, 12) == {0: 1 / 12, 1: 6 / 12, 3: 3 / 12, 4: 2 / 12}
    monkeypatch.setattr(cost, "MOST_SETS", 2)
    assert shares(plugins, 12) == {1: 8 / 12, 3: 4 / 12}


def test_equal_data_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as its tables differ, whatever the entries; flips are made of one data set."""
    calls: list[object] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return load_digits(*arguments, **options)

    monkeypatch.setattr("sklearn.datasets.load_digits", counted)
    recipes = {
        "none": recipe(),
        "r1": recipe({"name": "r1"}),
        "flipped": recipe(data={"name": "digits", "flip": True}),
        "points": recipe(data={"name": "gaussians8"}),
    }
    assert set(measure(recipes, device="cpu", rounds=1)) == set(recipes)
    assert len(calls) == 1


def test_data_of_other_options_is_other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[dict[str, Any]] = []
    load = cost.load_data

    def counted(made: Recipe) -> Any:
        loaded.append(dict(made.data.options))
        return load(made)

    monkeypatch.setattr(cost, "load_data", counted)
    sizes = {str(size): recipe(data={"name": "gaussians8", "samples": size}) for size in (40, 50)}
    measure(sizes | {"r1": recipe({"name": "r1"}, data=sizes["40"].table()["data"])},
            device="cpu", rounds=1)  # fmt: skip
    assert sorted(options["samples"] for options in loaded) == [40, 50]


def test_each_recipe_is_compared_with_itself_without_plugins() -> None:
    """By r1's mathematics (above), which no number of samples changes, and the width does."""

    def ratio(layers: list[tuple[int, int]]) -> float:
        forward = products(layers)
        bare = 2 * (forward + forward + products(layers[1:]))
        return (bare + forward + forward + products(layers[:-1])) / bare

    narrow = {"name": "mlp", "width": 8, "depth": 2}
    costs = measure(
        {
            "whole": recipe({"name": "r1"}),
            "half": recipe({"name": "r1"}, train={"steps": 1, "batch_size": B // 2}),
            "narrow": recipe({"name": "r1"}, critic=narrow),
        },
        device="cpu",
        rounds=1,
    )
    assert costs["whole"].flops == 2 * costs["half"].flops
    assert costs["whole"].flops_ratio == costs["half"].flops_ratio == pytest.approx(ratio(LAYERS))
    layers = [(IN, 8), (8, 8), (8, OUT)]
    assert costs["narrow"].flops_ratio == pytest.approx(ratio(layers))
    assert ratio(layers) != pytest.approx(ratio(LAYERS), rel=1e-3)


def test_clipping_and_spectral_norm_multiply_nothing_much() -> None:
    recipes = {"clip": recipe({"name": "clip"}), "sn": recipe({"name": "sn"})}
    found = measure(recipes, device="cpu", rounds=1)
    assert found["clip"].flops_ratio == 1.0
    assert found["sn"].flops_ratio < 1.2  # of a network so small a power iteration is a part
    assert (
        found["clip"].operations
        > measure({"none": recipe()}, device="cpu", rounds=1)["none"].operations
    )


@pytest.mark.parametrize(
    ("plugins", "critic", "most"),
    [
        ([{"name": "gp"}], RESNET, 1.70),
        ([{"name": "gp"}], BARE, 1.70),
        ([{"name": "gp"}], SEEDS, 2.05),
        ([{"name": "r1"}], RESNET, 1.53),
        ([{"name": "r1"}], BARE, 1.53),
        ([{"name": "r1"}, {"name": "r2"}], RESNET, 2.07),
        ([{"name": "r1"}, {"name": "r2"}], BARE, 2.07),
        ([{"name": "r1"}, {"name": "lazy", "every": 16}], RESNET, 1.04),
        ([{"name": "r1"}, {"name": "lazy", "every": 16}], BARE, 1.04),
        ([{"name": "sn"}], RESNET, 1.01),
        ([{"name": "sn"}], BARE, 1.01),
        ([{"name": "clip"}], RESNET, 1.00),
    ],
    ids=lambda value: "+".join(each["name"] for each in value) if isinstance(value, list) else None,
)
def test_no_regularizer_of_a_convolutional_critic_costs_more_than_its_mathematics(
    plugins: list[dict[str, Any]], critic: dict[str, Any], most: float, wide: Path
) -> None:
    sections: dict[str, Any] = {"critic": critic, "train": {"steps": 16, "batch_size": B}}
    if critic is not BARE:
        sections |= {"data": {"name": "folder", "path": str(wide)}}
        sections |= {"train": {"steps": 16, "batch_size": 4}}
    made = recipe(*plugins, **sections)
    assert measure({"it": made}, device="cpu", rounds=1)["it"].flops_ratio <= most


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 32×32 images in color."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return folder


def test_a_recipe_that_fails_is_left_out() -> None:
    recipes = {"boom": recipe({"name": "gp", "weight": 1e300}), "gp": recipe({"name": "gp"})}
    assert set(measure(recipes, device="cpu", rounds=1)) == {"gp"}


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    measure(
        {"r1": recipe({"name": "r1"})}, device="cpu", rounds=2, progress=lambda *a: told.append(a)
    )
    assert told == [("measuring costs", 1, 2), ("measuring costs", 2, 2)]
