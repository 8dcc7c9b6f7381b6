"""Networks that change their input in place: it is a copy, and nobody else's samples change."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Critic, Generator, Spy, images, needs_compiling
from torch import Tensor, nn

from gancore import CriticStep, Trainer, critic_scores, hookimpl, input_gradient, plugin
from gancore.losses import Hinge
from gancore.plugins import Loaded, Plugins
from gancore.training.objective import differentiate
from gancore_dragan import DRAGAN, dragan_penalty
from gancore_gp import GradientPenalty, gradient_penalty
from gancore_lecam import LeCam
from gancore_r1 import R1, r1_penalty
from gancore_r2 import R2, r2_penalty

W = torch.tensor([[3.0, -4.0, 0.0]], dtype=torch.float64)


def added(x: Tensor) -> Tensor:
    x += 1
    return x


def written(x: Tensor) -> Tensor:
    x[:, 2] = 5.0
    return x


def of_a_view(x: Tensor) -> Tensor:
    x.view(-1)[::3].mul_(2)
    return x


def by_data(x: Tensor) -> Tensor:
    x.data.mul_(7)
    return x


def without_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.mul_(7)
    return x


FIRST: dict[str, tuple[Callable[[Tensor], Tensor], list[float]]] = {
    "F.relu_": (F.relu_, [1, 1, 1]),
    "nn.ReLU": (nn.ReLU(inplace=True), [1, 1, 1]),
    "nn.LeakyReLU": (nn.LeakyReLU(0.2, inplace=True), [1, 1, 1]),
    "F.elu_": (F.elu_, [1, 1, 1]),
    "mul_": (lambda x: x.mul_(2), [2, 2, 2]),
    "+=": (added, [1, 1, 1]),
    "x[:, 2] = 5": (written, [1, 1, 0]),
    "a view": (of_a_view, [2, 1, 1]),
    "clamp_": (lambda x: x.clamp_(0.1, 9), [1, 1, 1]),
    "unsqueeze_": (lambda x: x.unsqueeze_(1).squeeze(1), [1, 1, 1]),
    "x.data": (by_data, [1, 1, 1]),
    "under no_grad": (without_grad, [1, 1, 1]),
}
"""A critic's first operation, and its derivative at samples in (1, 2)."""


class Changing(nn.Module):
    """D(x) = w·f(x), whose gradient is w times the derivative of f, w = (3, −4, 0)."""

    def __init__(self, first: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = first
        self.weight = nn.Parameter(W.clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.first(x), self.weight)


def samples(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + torch.rand(4, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", FIRST)
def test_gradients_are_by_the_samples_as_they_were_given(name: str) -> None:
    first, slope = FIRST[name]
    critic, real, fake = Changing(first), samples(0), samples(1)
    before = real.clone(), fake.clone()
    gradient = W * torch.tensor(slope, dtype=torch.float64)
    square = float(gradient.square().sum())
    pull = 10 * (math.sqrt(square) - 1) ** 2
    for value, expected in (
        (r1_penalty(critic, real), 5 * square),
        (r2_penalty(critic, fake), 5 * square),
        (gradient_penalty(critic, real, fake), pull),
        (dragan_penalty(critic, real, noise="gaussian", scale=1e-3), pull),
    ):
        assert value.item() == pytest.approx(expected, rel=1e-9)
    # d/dw of γ/2·‖s·w‖² is γ·s²·w, with s the slopes
    (by_weight,) = torch.autograd.grad(r1_penalty(critic, real), critic.weight)
    torch.testing.assert_close(by_weight, 10 * gradient * torch.tensor(slope))
    torch.testing.assert_close(input_gradient(critic, real), gradient.expand(4, 3))

    scores = F.linear(first(real.clone()), W).squeeze(1)
    for asked in (False, True):
        x = real.requires_grad_() if asked else real
        assert torch.equal(critic_scores(critic, x).detach(), scores)
    assert torch.equal(real, before[0])
    assert torch.equal(fake, before[1])


@pytest.mark.parametrize("name", FIRST)
def test_a_step_of_all_losses_and_penalties(name: str) -> None:
    """Gradients are those of the same critic with a copy made by hand; the guard has no say."""
    first, _ = FIRST[name]
    found = []
    for critic in (Changing(first), Changing(lambda x: first(x.clone()))):
        step = CriticStep(critic, samples(0), samples(1))
        made = {
            "gp": GradientPenalty(),
            "r1": R1(),
            "r2": R2(),
            "dragan": DRAGAN(),
            "lecam": LeCam(),
        }
        plugins = Plugins([Loaded(name, each) for name, each in {"hinge": Hinge(), **made}.items()])
        plugins.guard.watch(critic=critic)
        torch.manual_seed(0)
        due = {type(each).__name__: 1.0 for each in made}
        found.append(differentiate(plugins, step, [critic.weight], nullcontext(), due))
        assert torch.equal(step.real.detach(), samples(0))
        assert torch.equal(step.fake.detach(), samples(1))
    assert torch.equal(found[0].values, found[1].values)
    assert found[0].gradients[0] is not None
    assert torch.equal(found[0].gradients[0], found[1].gradients[0])  # type: ignore[arg-type]


class Doubling(Generator):
    """Changes its noise in place."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z.mul_(2))


class Rectifying(Critic):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.leaky_relu_(x, 0.2))


def updated(generator: type[nn.Module], critic: type[nn.Module]) -> tuple[list[float], Spy]:
    torch.manual_seed(0)
    spy, train = Spy(), {"steps": 2, "batch_size": 4}
    plugins = [spy, R1(), GradientPenalty()]
    made = Trainer(generator(), critic(), images(), plugins=plugins, train=train, device="cpu")
    return [*made.critic_update(0).values(), *made.generator_update(0).values()], spy


def test_runs_of_networks_that_change_their_input() -> None:
    """Both updates are those of networks that copy by hand, and what plugins see stays."""

    class Copying(Rectifying):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.clone())

    class CopyingNoise(Doubling):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z.clone())

    (ours, spy), (theirs, by_hand) = updated(Doubling, Rectifying), updated(CopyingNoise, Copying)
    assert ours == theirs
    for one, other in zip(spy.critic_steps, by_hand.critic_steps, strict=True):
        assert torch.equal(one.real, other.real)
        assert torch.equal(one.fake, other.fake)
    one, other = spy.generator_steps[0].latents, by_hand.generator_steps[0].latents
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


@needs_compiling
def test_a_compiled_update_of_a_critic_that_changes_its_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It compares its gradients with those uncompiled, and warns, an error here, if they differ."""
    compile_to, seen = torch.compile, []

    def quickly(function: Any, **options: Any) -> Any:
        seen.append(function)
        return compile_to(function, fullgraph=True, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quickly)
    critic = Changing(F.relu_).float()
    generator = nn.Linear(2, 3)
    generator.latent = 2  # type: ignore[assignment]
    train = {"steps": 2, "batch_size": 4, "compile": True}
    made = Trainer(generator, critic, torch.rand(9, 3), plugins=[R1()], train=train, device="cpu")
    values = made.critic_update(0)
    assert values["penalty/r1"] == pytest.approx(5 * 25)
    assert len(seen) == 1


class Viewing(nn.Module):
    """A critic of the pixels, by `view`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.view(len(x), -1))
        return out


class Permuting(Generator):
    """Makes images whose channels are last, and gives them another order."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).movedim(1, -1).repeat(1, 1, 1, 3).permute(0, 3, 1, 2)


def test_batches_of_permuted_data_are_contiguous(tmp_path: Path) -> None:
    """As critics, and what plugins get, take a view of them; they are those of a plain copy."""
    last = torch.randint(0, 256, (20, 4, 4, 3), dtype=torch.uint8)
    spies = []
    for data in (last.permute(0, 3, 1, 2), last.permute(0, 3, 1, 2).contiguous()):
        spy, grids = Spy(), Grids()
        torch.manual_seed(0)
        Trainer(
            Permuting(),
            Viewing(),
            data,
            plugins={"spy": spy, "grids": grids, "gp": GradientPenalty()},
            train={"steps": 1, "batch_size": 4},
            sample={"count": 4},
            score={"metrics": []},
            device="cpu",
        ).run(tmp_path / str(data.stride()))
        ((critic,), (generator,)) = spy.critic_steps, spy.generator_steps
        assert generator.latents is not None
        spies.append([critic.real, critic.fake, generator.real, generator.fake, generator.latents])
        assert all(x.is_contiguous() for x in (*spies[-1], critic.interpolates, *grids.seen))
        assert len(grids.seen) == 1
    assert all(torch.equal(one, other) for one, other in zip(*spies, strict=True))


@plugin
class Grids:
    """Keeps the samples of grids."""

    seen: list[Tensor] = field(init=False, default_factory=list)

    @hookimpl
    def sample(self, samples: Tensor) -> None:
        self.seen.append(samples)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_what_a_critic_raises_is_told_of_the_critic() -> None:
    class Broken(Critic):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("oh")

    made = Trainer(Generator(), Broken(), images(), train={"steps": 1}, device="cpu")
    with pytest.raises(ZeroDivisionError, match="oh") as caught:
        made.critic_update(0)
    assert caught.value.__notes__ == [
        "raised in the critic, given torch.float32 (64, 1, 4, 4) on cpu"
    ]
