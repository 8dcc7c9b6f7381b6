"""Lazy modules: initial weights are the seed's, whatever the plugins; none comes too late."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LATENT, TOY, Critic, Generator, assert_same, images, parsed, weights
from torch import Tensor, nn

from gancore import CriticStep, hookimpl, plugin
from gancore.errors import ContractError, InputError
from gancore.networks import mlp
from gancore.training import Trainer, load_critic, load_generator
from gancore.training import build_trainer as build
from gancore_lecam import LeCam
from gancore_r1 import R1
from gancore_sn import SpectralNorm


@plugin
class Drawing:
    """Draws at every moment at which it may."""

    @hookimpl
    def configure(self) -> None:
        torch.rand(7)

    @hookimpl
    def prepare_critic(self) -> None:
        torch.rand(7)

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        torch.rand(7)
        return step.scores(step.real + torch.rand(())).square().mean()


class LazyGenerator(nn.Module):
    latent = LATENT

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.5), nn.LazyLinear(16)
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.layers(z)).view(-1, 1, 4, 4)


class LazyCritic(nn.Module):
    """Scores packs of two: a batch of odd size fails."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyConv2d(3, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.LazyLinear(1)
        )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        packed = x.view(len(x) // 2, 2, 4, 4)
        return self.layers(packed).repeat_interleave(2, 0)  # type: ignore[no-any-return]


def made(
    *plugins: object, seed: int = 0, generator: nn.Module | None = None, **options: Any
) -> Trainer:
    train = {"steps": 2, "batch_size": 8, "seed": seed, "ema": 0.9}
    return Trainer(
        generator or LazyGenerator(),
        options.pop("critic", None) or LazyCritic(),
        images(),
        plugins=plugins,
        train=train,
        score={"metrics": []},
        sample={"count": 4},
        device="cpu",
        **options,
    )


def test_initial_weights_are_those_of_the_seed_whatever_draws() -> None:
    plain, other = made(), made(Drawing(), R1(), LeCam())
    torch.manual_seed(99)
    again = made(SpectralNorm())
    for trainer in (other, again):
        assert_same(weights(plain.generator), weights(trainer.generator))
    assert_same(weights(plain.critic), weights(other.critic))
    original = {
        key.replace("parametrizations.weight.original", "weight"): each
        for key, each in weights(again.critic).items()
        if ".0.u" not in key and ".0.v" not in key
    }
    assert_same(weights(plain.critic), original)
    for name, each in weights(made(seed=1).critic).items():
        assert not torch.equal(each, weights(plain.critic)[name])


def test_statistics_modes_and_values_are_those_of_a_fresh_module() -> None:
    generator, critic = LazyGenerator(), LazyCritic()
    generator.layers[3].eval()
    trainer = made(generator=generator, critic=critic)
    norm = trainer.generator.get_submodule("layers.1")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.num_batches_tracked == 0
    assert torch.equal(norm.running_mean, torch.zeros(16))  # type: ignore[arg-type]
    assert torch.equal(norm.running_var, torch.ones(16))  # type: ignore[arg-type]
    assert [part.training for part in generator.layers] == [True] * 3 + [False] + [True]
    assert generator.training
    assert critic.calls == 1
    last = critic.get_submodule("layers.3")
    assert last.weight.shape == (1, 12)
    assert 0 < last.weight.abs().max() <= 12**-0.5  # torch's default: uniform to 1/√inputs
    assert all(parameter.grad is None for parameter in trainer.critic.parameters())


def test_what_is_not_lazy_is_not_called() -> None:
    generator, critic = Generator(), Critic()
    calls: list[object] = []
    for module in (generator, critic):
        module.register_forward_hook(lambda module, *rest: calls.append(module))
    before = weights(generator), weights(critic)
    made(generator=generator, critic=critic)
    assert not calls
    assert_same(before[0], weights(generator))
    assert_same(before[1], weights(critic))


def test_lazy_networks_train_average_resume_and_load(tmp_path: Path) -> None:
    plugins = (R1(), SpectralNorm())
    whole = made(*plugins, critic=Plain())
    whole.run(tmp_path / "whole")
    short = made(*plugins, critic=Plain())
    train = short.settings.train.model_copy(update={"max_seconds": 1e-9})
    short.learner.settings = replace(short.settings, train=train)
    short.run(tmp_path / "run")
    resumed = made(*plugins, critic=Plain())
    run = resumed.run(tmp_path / "run", resume=True)
    assert_same(weights(whole.generator), weights(resumed.generator))
    assert_same(weights(whole.critic), weights(resumed.critic))
    assert whole.learner.average is not None
    loaded = load_generator(run, generator=LazyGenerator())
    latents = torch.randn(6, LATENT, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(latents), whole.sampler()(latents))


class Plain(nn.Module):
    """A lazy critic without packs."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Training(nn.Module):
    """Has a head that is called in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LazyLinear(4), nn.LazyLinear(1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x.flatten(1))
        return self.head(out) if self.training else out.mean(1)  # type: ignore[no-any-return]


def test_what_can_t_be_given_shapes_is_refused() -> None:
    with pytest.raises(InputError, match=r"critic is lazy, .*left head\.weight out\. Pass it"):
        made(critic=Training())
    critic = Training()
    critic(torch.zeros(2, 1, 4, 4))  # the remedy
    made(critic=critic).critic_update(0)
    with pytest.raises(InputError, match=r"of \(8, 1, 4, 4\) in eval mode, failed: RuntimeError: "):
        made(critic=nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 1)))
    with pytest.raises(InputError, match="generator is lazy"):
        generator = LazyGenerator()
        generator.layers.append(nn.Linear(3, 3))
        made(generator=generator)


class Late(nn.Module):
    """Makes a layer when it is first called, or at a later call."""

    latent = LATENT

    def __init__(self, inputs: int, outputs: tuple[int, ...], at: int = 0) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, math.prod(outputs))
        self.last: nn.Module | None = None
        self.outputs, self.at, self.calls = outputs, at, 0

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x.flatten(1)))
        if self.last is None and self.calls >= self.at:
            self.last = nn.Linear(math.prod(self.outputs), math.prod(self.outputs))
        self.calls += 1
        hidden = hidden if self.last is None else self.last(hidden)
        return hidden.view(-1, *self.outputs)


@pytest.mark.parametrize("what", ["generator", "critic"])
@pytest.mark.parametrize("first", ["critic_update", "generator_update"])
def test_a_network_that_makes_layers_in_its_first_pass_is_refused(what: str, first: str) -> None:
    size, shape = (LATENT, (1, 4, 4)) if what == "generator" else (16, (1,))
    trainer = made(**{"generator": Generator(), "critic": Critic(), what: Late(size, shape)})
    before = weights(trainer.critic)
    with pytest.raises(ContractError, match=rf"the {what}'s last.weight was made after the Trai"):
        getattr(trainer, first)(0)
    assert_same(before, {key: weights(trainer.critic)[key] for key in before})
    late = Late(size, shape)
    late(torch.zeros(2, size))  # the remedy
    getattr(made(**{"generator": Generator(), "critic": Critic(), what: late}), first)(0)


@pytest.mark.filterwarnings("ignore:the critic ends in a tanh")
def test_a_network_that_makes_layers_later_is_refused_before_it_is_saved(tmp_path: Path) -> None:
    trainer = made(generator=Generator(), critic=Late(16, (1,), at=4))
    with pytest.raises(ContractError, match=r"critic's last.weight was made after"):
        trainer.run(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_lazy_critic_of_a_recipe_is_loaded_with_its_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lazy(mlp.MLPCritic):
        def __init__(self, shape: tuple[int, ...], *, width: int = 8, depth: int = 1) -> None:
            super().__init__(shape, width=width, depth=depth)
            self.layers = Plain().layers

    monkeypatch.setattr(mlp, "MLPCritic", Lazy)
    recipe = parsed(TOY.replace('"gp"', '"sn"'), **{"train.steps": 1})
    trained = build(recipe, device="cpu")
    assert isinstance(trained.critic, Lazy)
    loaded = load_critic(trained.run(tmp_path / "run"))
    assert_same(weights(trained.critic), weights(loaded))
