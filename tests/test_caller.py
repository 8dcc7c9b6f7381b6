"""The caller's process: public calls leave it as it was, and depend on nothing of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import DIGITS, LATENT, TOY, Generator, assert_same, images, networks, parsed, weights
from torch import Tensor, nn

import gancore
from gancore import CriticStep, hookimpl, plugin
from gancore.errors import GancoreError
from gancore.isolation.caller import undisturbed
from gancore.isolation.randomness import kept
from gancore.recipe import Score
from gancore.scoring import score_generator
from gancore.scoring.sampling import calibrated, generate
from gancore.testing import Subject, check_plugin
from gancore.training import Trainer, loading
from gancore.training import building as experiment
from gancore.training.loading import load_critic
from gancore_gp import GradientPenalty


def surroundings() -> list[Any]:
    backend: Any = torch.backends.cudnn
    return [
        torch.get_rng_state().tolist(),
        repr(np.random.get_state()),
        random.getstate(),
        (backend.enabled, backend.benchmark, backend.deterministic),
        (backend.conv.fp32_precision, backend.rnn.fp32_precision),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    ]


@plugin
class Vandal:
    """Draws from everywhere, and may raise."""

    fail: bool = False

    @hookimpl
    def post_step(self) -> None:
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        if self.fail:
            raise ZeroDivisionError


class Rowdy(Generator):
    """Changes settings in its forward pass, where no plugin is watched."""

    def forward(self, z: Tensor) -> Tensor:
        torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().forward(z)


def built(**changes: Any) -> Trainer:
    with kept():
        generator, critic = networks()
        generator = changes.pop("generator", generator)
    options = {"train": {"steps": 2, "batch_size": 8}, "score": {"metrics": []}, "device": "cpu"}
    return Trainer(generator, critic, images(), **{**options, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> gancore.Run:
    return gancore.run(parsed(DIGITS), tmp_path_factory.mktemp("runs") / "run", device="cpu")


def rowdy() -> Rowdy:
    with kept():
        return Rowdy()


CALLS: dict[str, Callable[[gancore.Run, Path], object]] = {
    "gancore.run": lambda run, path: gancore.run(parsed(TOY), path / "a", device="cpu"),
    "Trainer": lambda run, path: built(),
    "Trainer.run": lambda run, path: built(plugins=[Vandal()]).run(path / "a"),
    "Trainer.critic_update": lambda run, path: built(plugins=[Vandal()]).critic_update(0),
    "Trainer.critic_samples": lambda run, path: built(generator=rowdy()).critic_samples(0),
    "Trainer.generator_update": lambda run, path: built().generator_update(0),
    "Trainer.sampler": lambda run, path: built().sampler(),
    "load_generator": lambda run, path: gancore.load_generator(run),
    "load_critic": lambda run, path: load_critic(run),
    "score_run": lambda run, path: loading.score_run(run, run.read_recipe().score),
    "generate": lambda run, path: generate(gancore.load_generator(run), 9, seed=0),
    "check_plugin": lambda run, path: check_plugin(Subject(GradientPenalty)),
}


@pytest.mark.parametrize("name", CALLS)
def test_public_calls_leave_the_process_as_it_was(
    name: str, made: gancore.Run, tmp_path: Path
) -> None:
    np.random.randn()  # one of a pair: the other is part of the state
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        before = surroundings()
        CALLS[name](made, tmp_path)
        after = surroundings()
    assert after == before


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_a_caller_may_have_set_each_precision_by_itself(precision: str) -> None:
    """Where torch's older switches can't be read: they know one for all operations."""
    backend: Any = torch.backends
    switches = [backend.cudnn.conv, backend.cudnn.rnn, backend.cuda.matmul, backend.mkldnn.matmul]
    before = [each.fp32_precision for each in switches]

    class Hasty(Generator):
        def forward(self, z: Tensor) -> Tensor:
            backend.cudnn.conv.fp32_precision = "none"
            return super().forward(z)

    with kept():
        generator = Hasty()
    try:
        for switch, value in zip(switches, [precision, "ieee", "tf32", "ieee"], strict=True):
            switch.fp32_precision = value
        built(generator=generator, plugins=[GradientPenalty()]).critic_update(0)
        assert [each.fp32_precision for each in switches] == [precision, "ieee", "tf32", "ieee"]
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def test_a_call_that_raises_leaves_it_too() -> None:
    before = surroundings()
    with pytest.raises(ZeroDivisionError):
        built(plugins=[Vandal(fail=True)]).critic_update(0)
    assert surroundings() == before
    with pytest.raises(GancoreError):
        built(train={"steps": 1, "batch_size": 0})
    assert surroundings() == before


def test_repetitions_of_a_user_begin_with_networks_of_their_own() -> None:
    """The issue's sample: after a Trainer was built, torch.rand was .194 under any seed."""
    numbers = set()
    for seed in range(3):
        torch.manual_seed(seed)
        built(plugins=[GradientPenalty()])
        torch.manual_seed(seed)
        before = torch.rand(()).item()
        torch.manual_seed(seed)
        made = built(plugins=[GradientPenalty()])
        torch.manual_seed(seed)
        made.critic_update(0)
        assert torch.rand(()).item() == before
        numbers.add(before)
    assert len(numbers) == 3


@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937])
def test_numpys_generator_may_be_another(kind: Any) -> None:
    """One that can't be seeded makes way for one that can, and comes back as it was."""
    from numpy.random.mtrand import get_bit_generator, set_bit_generator

    mine, theirs = kind(5), get_bit_generator()
    set_bit_generator(mine)
    try:
        expected = np.random.randn(3).tolist()
        set_bit_generator(kind(5))
        found = [np.random.randn()]
        with undisturbed():
            np.random.seed(0)
            np.random.randn()
        found += np.random.randn(2).tolist()
    finally:
        set_bit_generator(theirs)
    assert found == expected


def test_a_run_goes_on_in_inference_mode_and_beside_another_default_dtype(tmp_path: Path) -> None:
    one, two = built(), built()
    one.run(tmp_path / "one")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            two.run(tmp_path / "two")
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same(weights(one.critic), weights(two.critic))


def test_a_run_depends_on_nothing_of_its_process(tmp_path: Path) -> None:
    """Nor on what was drawn before it, nor on gradients being off, nor on NumPy's generator."""
    one = gancore.run(parsed(TOY), tmp_path / "one", device="cpu")
    with torch.random.fork_rng(), torch.no_grad():
        torch.rand(7), np.random.rand(3), random.random()
        two = gancore.run(parsed(TOY), tmp_path / "two", device="cpu")
    assert_same(weights(load_critic(one)), weights(load_critic(two)))


class Noisy(nn.Module):
    """A generator with noise of its own, as StyleGAN2's: from torch, NumPy and Python."""

    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(LATENT, 16)

    def forward(self, z: Tensor) -> Tensor:
        noise = torch.randn(len(z), 16) + float(np.random.randn()) + random.random()
        return torch.tanh(self.layer(z) + noise).view(-1, 1, 4, 4)


def test_samples_of_a_generator_that_draws_noise_are_those_of_the_seed() -> None:
    generator: Any = calibrated(Noisy(), 0)
    torch.manual_seed(1)
    whole = generate(generator, 600, seed=0)
    torch.manual_seed(2)
    np.random.rand(2)
    assert torch.equal(generate(generator, 600, seed=0), whole)
    assert torch.equal(generate(generator, 300, seed=0), whole[:300])
    assert not torch.equal(generate(generator, 600, seed=1), whole)
    with torch.no_grad():
        generator.layer.weight.zero_()  # so that all there is is noise
    blocks = generate(generator, 512, seed=0)
    assert not torch.equal(blocks[:256], blocks[256:])


def test_scores_of_a_generator_that_draws_noise_are_those_of_the_seed() -> None:
    from gancore.data.digits import digits

    class Digits(Noisy):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z).repeat(1, 1, 2, 2)

    section = Score(metrics=("fid",), extractor="digits", samples=128)
    generator = Digits()
    one, two = (
        score_generator(generator, digits(), section, seed=0, device="cpu") for _ in range(2)
    )
    assert one is not None
    assert one == two


@plugin
class Table:
    """Draws a table, an untrained network and two numbers when it is made."""

    def __post_init__(self) -> None:
        self.table = torch.rand(1, 1) + float(np.random.rand()) + random.random()
        self.layer = nn.Linear(16, 1)

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        return (step.scores(step.real) * self.table.to(step.real)).square().mean()


def test_what_a_plugin_draws_when_it_is_made_is_a_function_of_seed_and_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gancore.plugins import Loaded

    def load(name: str, *arguments: Any, alias: str | None = None, **options: Any) -> Loaded:
        return Loaded(alias or name, Table())

    monkeypatch.setattr(experiment, "load", load)
    text = TOY.replace('"gp"', '"table"\nas = "one"\n[[plugin]]\nname = "table"\nas = "two"')

    def tables(seed: int, drawn: int) -> list[list[float]]:
        torch.rand(drawn), np.random.rand(drawn)
        loaded = experiment.load_plugins(parsed(text, **{"train.seed": seed}))
        return [each.instance.table.flatten().tolist() for each in loaded]  # type: ignore[attr-defined]

    assert tables(0, 1) == tables(0, 2)
    assert len({tuple(table) for seed in (0, 1) for table in tables(seed, 3)}) == 6


def test_a_data_set_that_draws_is_one_for_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*arguments: Any) -> gancore.Dataset:
        return gancore.Dataset("drawn", torch.randn(9, 2))

    monkeypatch.setattr(experiment, "build_component", build)
    one, two = (
        experiment.load_data(parsed(TOY, **{"train.seed": seed})).samples for seed in (0, 1)
    )
    assert torch.equal(one, two)


def test_the_contract_finds_what_a_plugin_draws_when_it_is_made() -> None:
    found = {each.check: each for each in check_plugin(Subject(Table))}
    assert found["seed"].verdict == found["state"].verdict == "failed"
    assert "it draws in its constructor" in found["seed"].detail


@plugin
class Masks:
    """A plain torch.rand, which the contract tells of without failing it."""

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        mask = torch.rand(len(step.real), device=step.real.device, dtype=step.real.dtype)
        return (step.scores(step.real).square() * mask).mean()


def test_the_contract_tells_of_step_rand() -> None:
    found = {each.check: each for each in check_plugin(Subject(Masks))}
    assert found["split"].verdict == "passed"
    assert "step.rand" in found["split"].detail
    assert all(each.verdict == "passed" for each in found.values())


def test_gps_split_is_told() -> None:
    found = {each.check: each for each in check_plugin(Subject(GradientPenalty))}
    assert "apart" in found["split"].detail


def test_networks_of_one_seed_are_those_of_one_seed() -> None:
    """Initial weights stay what they were: torch's stream of that name."""
    from gancore.isolation.randomness import Stream
    from gancore.networks.mlp import MLPCritic

    built: Trainer = experiment.build_trainer(parsed(TOY), device="cpu")
    torch.manual_seed(Stream(0, "init/critic").key(0))
    assert_same(weights(built.critic), weights(MLPCritic((2,), width=16)))
