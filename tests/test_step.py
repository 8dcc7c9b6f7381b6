"""Steps: shared forward passes and gradients, against analytic answers and hand-made sums."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, critic_scores, input_gradient, interpolate
from gancore.errors import ContractError
from gancore.plugins import Plugins, load
from gancore.training.objective import objective


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Critic(nn.Module):
    """w₂·tanh(W₁x + b₁) in float64, which counts its forward passes."""

    def __init__(self, features: int = 6, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(features, width, dtype=torch.float64)
        self.last = nn.Linear(width, 1, bias=False, dtype=torch.float64)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        scores: Tensor = self.last(torch.tanh(self.first(x.flatten(1))))
        return scores


def samples(*shape: int) -> Tensor:
    return torch.randn(*(shape or (4, 6)), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 6), (4, 1, 2, 3), (1, 6)])
def test_input_gradient_is_the_analytic_one(shape: tuple[int, ...]) -> None:
    critic, x = Critic(), samples(*shape)
    w1, b1, w2 = (p.detach().numpy() for p in critic.parameters())
    hidden = np.tanh(x.flatten(1).numpy() @ w1.T + b1)
    analytic = ((1 - hidden**2) * w2) @ w1

    step = CriticStep(critic, x, x + 1)
    for gradient in (step.input_gradient(step.real), input_gradient(critic, x)):
        assert gradient.shape == shape
        assert gradient.requires_grad  # differentiable once more
        np.testing.assert_allclose(gradient.detach().flatten(1).numpy(), analytic, rtol=1e-12)
    assert not x.requires_grad
    assert x.grad is None
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_the_second_derivative_is_there() -> None:
    """∂/∂w₂ of Σ‖∇D‖² of one unit: D = w₂·tanh(w₁x), ∇D = w₂w₁(1 − tanh²), so 2·w₂·(∇D/w₂)²."""
    critic, x = Critic(1, 1), samples(3, 1)
    input_gradient(critic, x).square().sum().backward()  # type: ignore[no-untyped-call]
    w1, b1, w2 = (p.item() for p in critic.parameters())
    slope = w1 * (1 - np.tanh(w1 * x.numpy() + b1) ** 2)
    assert critic.last.weight.grad is not None
    assert critic.last.weight.grad.item() == pytest.approx(2 * w2 * (slope**2).sum(), rel=1e-12)


def test_scores_and_gradients_are_computed_once() -> None:
    critic = Critic()
    step = CriticStep(critic, samples(), samples())
    first = step.input_gradient(step.real)
    assert step.input_gradient(step.real) is first
    assert step.scores(step.real) is step.scores(step.real)
    assert len(critic.seen) == 1
    twin = step.real.detach().clone().requires_grad_()  # equal, but another tensor
    assert torch.equal(step.scores(twin), step.scores(step.real))
    assert len(critic.seen) == 2


def test_a_new_tensor_is_never_taken_for_a_dead_one() -> None:
    step = CriticStep(lambda x: x.sum(1), samples(), samples())
    for value in range(50):
        x = torch.full((2, 3), float(value))
        assert step.scores(x).tolist() == [3.0 * value] * 2
        x.requires_grad_()
        del x


def test_scores_taken_without_grad_do_not_serve_the_loss() -> None:
    """A plugin that only watches must not cut the loss off from the critic."""
    step = CriticStep(Critic(), samples(), samples())
    with torch.no_grad():
        watched = step.scores(step.real)
    assert step.scores(step.real).requires_grad
    assert torch.equal(watched, step.scores(step.real))


@pytest.mark.parametrize("tail", [(), (1,), (1, 1, 1)])
def test_critics_answer_one_number_a_sample(tail: tuple[int, ...]) -> None:
    scores = critic_scores(lambda x: x.sum((1, 2)).reshape(5, *tail), torch.ones(5, 2, 3))
    assert scores.tolist() == [6.0] * 5


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: (x[:, 0], x), "returned tuple.*lambda that picks the score"),
        (lambda x: 3.0, "returned float"),
        (lambda x: x, r"returned shape \(5, 2\) for 5 samples.*reduce"),
        (lambda x: x.sum(), r"returned shape \(\)"),
        (lambda x: x[:4, 0], r"returned shape \(4,\) for 5"),
        (lambda x: x[:, 0][None], r"returned shape \(1, 5\)"),
    ],
)
def test_other_answers_break_the_contract(answer: Callable[[Tensor], Any], said: str) -> None:
    with pytest.raises(ContractError, match=said):
        CriticStep(answer, torch.ones(5, 2), torch.ones(5, 2)).scores(torch.ones(5, 2))


@pytest.mark.parametrize(
    ("given", "answered"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_scores_are_float32_at_least(given: torch.dtype, answered: torch.dtype) -> None:
    assert critic_scores(lambda x: x.sum(1).to(given), torch.ones(2, 3)).dtype == answered


def test_bf16_scores_under_autocast() -> None:
    critic, x = nn.Linear(3, 1), torch.randn(4, 3)
    step = CriticStep(critic, x, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert critic(x).dtype == torch.bfloat16
        half = step.scores(step.real)
    assert half.dtype == torch.float32
    assert half.tolist() != critic(x).flatten().tolist()
    torch.testing.assert_close(half, critic(x).flatten(), rtol=0.02, atol=0.02)


Asked = Callable[[CriticStep], Tensor]
ASKED: dict[str, Asked] = {
    "scores": lambda step: step.scores(step.real),
    "gradient": lambda step: step.input_gradient(step.real),
}


def relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).detach().norm() / exact.detach().norm())


@pytest.mark.parametrize("later", ASKED.values(), ids=ASKED)
@pytest.mark.parametrize("first", ASKED.values(), ids=ASKED)
def test_what_autocast_rounded_serves_only_there(first: Asked, later: Asked) -> None:
    """A penalty asked for outside is that of a step that was never in autocast, bit for bit."""
    critic, x = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 1)), torch.randn(4, 6)
    passes: list[Tensor] = []
    critic.register_forward_hook(lambda module, inputs, out: passes.append(out))
    step = CriticStep(critic, x, x)
    with torch.autocast("cpu", torch.bfloat16):
        low = first(step)
        assert first(step) is low  # there it does serve
        assert [out.dtype for out in passes] == [torch.bfloat16]
    exact, rounded = later(CriticStep(critic, x, x)), later(step)
    assert torch.equal(rounded, exact)
    assert later(step) is rounded
    assert relative(low, first(CriticStep(critic, x, x))) > 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        assert later(step) is rounded  # and full precision serves anywhere
    with torch.autocast("cpu", torch.float16), torch.no_grad():
        other = CriticStep(critic, x, x)
        half = other.scores(other.real)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert not torch.equal(half, other.scores(other.real))


def test_a_gradient_in_autocast_of_scores_outside_is_not_remembered_for_there() -> None:
    critic, x = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 1)), torch.randn(4, 6)
    step, exact = CriticStep(critic, x, x), ASKED["gradient"](CriticStep(critic, x, x))
    step.scores(step.real)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative(step.input_gradient(step.real), exact) > 1e-4
    assert torch.equal(step.input_gradient(step.real), exact)


def test_real_and_fake_are_new_leaves() -> None:
    real, fake = samples(), samples().requires_grad_() * 2
    before = real.clone(), fake.detach().clone()
    step = CriticStep(Critic(), real, fake, labels=torch.arange(4), update=3)
    for leaf in (step.real, step.fake, step.interpolates):
        assert leaf.is_leaf
        assert leaf.requires_grad
    (step.scores(step.real) - step.scores(step.fake)).sum().backward()  # type: ignore[no-untyped-call]
    assert (real.requires_grad, real.grad, step.update) == (False, None, 3)
    assert step.labels is not None
    assert step.labels.tolist() == [0, 1, 2, 3]
    assert torch.equal(real, before[0])
    assert torch.equal(fake, before[1])


def test_input_gradient_wants_x_to_require_grad_before_its_first_use() -> None:
    step, x = CriticStep(Critic(), samples(), samples()), samples()
    with pytest.raises(ContractError, match=r"\(4, 6\) that does not require grad.*before its"):
        step.input_gradient(x)
    ours = samples().requires_grad_()
    assert step.input_gradient(ours).abs().min() > 0
    step.scores(x)
    x.requires_grad_()  # too late
    with pytest.raises(ContractError, match="before its first use"):
        step.input_gradient(x)


class Foreign(torch.autograd.Function):
    """A layer whose author forgot the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:  # type: ignore[override]
        return None


def extracted(x: Tensor, layer: nn.Linear) -> Tensor:
    with torch.no_grad():
        out: Tensor = layer(x)
    return out


PATHS: dict[str, tuple[bool, Callable[[Tensor, nn.Linear], Tensor]]] = {
    "detached": (False, lambda x, layer: layer(x.detach())),
    "an extractor under no_grad": (False, lambda x, layer: layer(extracted(x, layer))),
    "through NumPy": (False, lambda x, layer: layer(torch.from_numpy(x.detach().numpy()))),
    "of indices": (False, lambda x, layer: layer(F.one_hot(x.argmax(1), 6).double())),
    "ignores x": (False, lambda x, layer: layer.bias.sum().expand(len(x))),
    "a constant": (False, lambda x, layer: torch.ones(len(x))),
    "a function without gradient": (False, lambda x, layer: layer(Foreign.apply(x))),
    "one of two ways": (True, lambda x, layer: layer(x.detach()) + layer(x)),
    "a frozen layer": (True, lambda x, layer: x @ layer.weight.detach().T),
    "without parameters": (True, lambda x, layer: x),
    "zero weights": (True, lambda x, layer: layer(x) * torch.zeros(())),
    "flat": (True, lambda x, layer: layer(x.round())),
    "dead units": (True, lambda x, layer: layer((x - 1e6).relu())),
}


@pytest.mark.parametrize("name", PATHS)
def test_no_path_is_refused_exactly_where_torch_refuses(name: str) -> None:
    there, scores = PATHS[name]
    layer, x = nn.Linear(6, 6, dtype=torch.float64), samples()

    def critic(x: Tensor) -> Tensor:
        out = scores(x, layer)
        return out if out.dim() == 1 else out.sum(1)

    step, leaf = CriticStep(critic, x, x), x.clone().requires_grad_()
    if there:
        (expected,) = torch.autograd.grad(critic(leaf).sum(), leaf)
        for found in (input_gradient(critic, x), step.input_gradient(step.real)):
            torch.testing.assert_close(found, expected)
        return
    with pytest.raises(RuntimeError, match=r"not have been used in the graph|not require grad"):
        torch.autograd.grad(critic(leaf).sum(), leaf)
    for call in (lambda: input_gradient(critic, x), lambda: step.input_gradient(step.real)):
        with pytest.raises(ContractError, match="scores have no path to its input.*no_grad"):
            call()


def compiled_in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def compiled(module: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(module, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


@pytest.mark.parametrize(
    "critic",
    [
        lambda: compiled(nn.Linear(6, 1)),
        lambda: compiled_in_place(nn.Linear(6, 1)),
        lambda: nn.Sequential(compiled(nn.Linear(6, 1))),
    ],
    ids=["torch.compile", "module.compile", "a part"],
)
def test_a_compiled_critic_is_refused(critic: Callable[[], nn.Module]) -> None:
    x = torch.randn(4, 6)
    step = CriticStep(critic(), x, x, allow_batch_statistics=True)
    for call in (lambda: input_gradient(critic(), x), lambda: step.input_gradient(step.real)):
        with pytest.raises(ContractError, match=r"compile.* second time"):
            call()


def test_interpolates_are_one_uniform_alpha_a_sample() -> None:
    alpha = interpolate(torch.ones(20_000, 1, 2), torch.zeros(20_000, 1, 2)).detach()
    assert torch.equal(alpha[..., 0], alpha[..., 1])
    assert 0 <= alpha.min() < alpha.max() <= 1  # never beyond the line
    assert scipy.stats.kstest(alpha[:, 0, 0].numpy(), "uniform").pvalue > 0.01
    real, fake = samples(), samples()
    x = interpolate(real, fake, generator=torch.Generator().manual_seed(5)).detach()
    a = torch.rand(4, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    torch.testing.assert_close(x, a * real + (1 - a) * fake)
    assert (real.requires_grad, fake.requires_grad) == (False, False)


def test_interpolates_are_drawn_once_a_step() -> None:
    step = CriticStep(Critic(), samples(), samples())
    assert step.interpolates is step.interpolates
    with pytest.raises(ContractError, match=r"\(4, 6\), fake \(3, 6\): .*as many of one"):
        _ = CriticStep(Critic(), samples(), samples(3, 6)).interpolates


def test_generator_step_keeps_the_graph() -> None:
    generator, critic, latents = nn.Linear(2, 6, dtype=torch.float64), Critic(), samples(4, 2)
    fake, real = generator(latents), samples()
    step = GeneratorStep(generator, critic, real, fake, latents=latents, update=2)
    assert (step.fake is fake, step.real is real, step.latents is latents) == (True,) * 3
    (-step.scores(step.fake).mean()).backward()  # type: ignore[no-untyped-call]
    assert generator.weight.grad is not None
    assert generator.weight.grad.abs().min() > 0
    assert not real.requires_grad


def by_hand(critic: Critic, real: Tensor, fake: Tensor, x: Tensor) -> list[Tensor]:
    """Return −E[D(real)] + E[D(fake)], GP, R1 and R2, each from forward passes of its own."""

    def norms(at: Tensor) -> Tensor:
        at = at.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(critic(at).sum(), at, create_graph=True)
        norm: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return norm

    return [
        critic(fake).mean() - critic(real).mean(),
        10.0 * (norms(x) - 1).square().mean(),
        3.0 / 2 * norms(real).square().mean(),
        5.0 / 2 * norms(fake).square().mean(),
    ]


@pytest.mark.parametrize("update", [4, 5])
def test_penalties_together_are_the_sum_of_each_alone(update: int) -> None:
    """GP made lazy, R1 and R2 share forward passes and yet give the gradients of their sum."""
    critic, real, fake = Critic(), samples(), samples()
    lazy = {"every": 4, "targets": ["gp"]}
    names: list[tuple[str, dict[str, Any]]] = [
        ("wasserstein", {}), ("gp", {}), ("r1", {"gamma": 3}), ("r2", {"gamma": 5}), ("lazy", lazy)
    ]  # fmt: skip
    plugins = Plugins([load(name, options) for name, options in names])
    step = CriticStep(critic, real, fake, update=update)
    total = objective(plugins, step, nullcontext()).total
    points = [step.fake, step.real] + ([step.interpolates] if update == 4 else [])
    assert len(critic.seen) == len(points)  # D(real) and D(fake) once each
    assert all(sum(torch.equal(seen, x) for seen in critic.seen) == 1 for x in points)

    factors = [1, 4 if update == 4 else 0, 1, 1]
    parameters = list(critic.parameters())
    ours = torch.autograd.grad(total, parameters)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    parts = by_hand(critic, real, fake, step.interpolates)
    for factor, part in zip(factors, parts, strict=True):
        alone = torch.autograd.grad(factor * part, parameters, allow_unused=True)
        for number, gradient in enumerate(alone):
            sums[number] += 0 if gradient is None else gradient
    torch.testing.assert_close(ours, tuple(sums), rtol=1e-10, atol=1e-12)
    expected = sum(f * part for f, part in zip(factors, parts, strict=True))
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0)


def test_a_gradient_without_grad_is_refused() -> None:
    step = CriticStep(Critic(), samples(), samples())
    with torch.no_grad():
        for ask in (step.input_gradient, lambda x: input_gradient(Critic(), x)):
            with pytest.raises(ContractError, match="no_grad"):
                ask(step.real)
    assert step.input_gradient(step.real).requires_grad


def test_what_is_changed_in_place_is_scored_anew() -> None:
    x = torch.ones(3, 2)
    step = CriticStep(lambda x: x.square().sum(1), x, x)
    own = x.clone().requires_grad_()
    first, gradient = step.scores(own), step.input_gradient(own)
    with torch.no_grad():
        own.add_(1)
    assert first.tolist() == [2.0] * 3
    assert step.scores(own).tolist() == [8.0] * 3
    assert gradient.tolist() == [[2.0] * 2] * 3
    assert step.input_gradient(own).tolist() == [[4.0] * 2] * 3
