"""The four losses against their formulas in NumPy, on any scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep
from gancore.plugins import Plugins, load

Scores = NDArray[np.float64]
Formula = Callable[[Scores, Scores], np.float64]


def softplus(x: Scores) -> Scores:
    return np.logaddexp(0, x)


FORMULAS: dict[str, tuple[Formula, Formula]] = {
    "wasserstein": (
        lambda real, fake: fake.mean() - real.mean(),
        lambda real, fake: -fake.mean(),
    ),
    "hinge": (
        lambda real, fake: np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + fake).mean(),
        lambda real, fake: -fake.mean(),
    ),
    "nonsaturating": (
        lambda real, fake: softplus(-real).mean() + softplus(fake).mean(),
        lambda real, fake: softplus(-fake).mean(),
    ),
    "rpgan": (
        lambda real, fake: softplus(fake - real).mean(),
        lambda real, fake: softplus(real - fake).mean(),
    ),
}
"""The critic's and the generator's loss of scores of real and fake samples."""


def losses(name: str, real: Scores, fake: Scores) -> tuple[Tensor, CriticStep, Tensor, Tensor]:
    """Return both losses of a critic whose scores are the samples, and what they hang on."""
    plugins = Plugins([load(name)])
    samples, generated = torch.from_numpy(real)[:, None], torch.from_numpy(fake)[:, None]
    step = CriticStep(lambda x: x, samples, generated)
    made = generated.clone().requires_grad_()
    generator_step = GeneratorStep(nn.Identity(), lambda x: x, samples, made)
    critic_loss = plugins.answer_loss("critic_loss", step)
    return critic_loss, step, plugins.answer_loss("generator_loss", generator_step), made


score = st.floats(-100, 100, allow_subnormal=False)
pairs = st.integers(1, 6).flatmap(lambda n: arrays(np.float64, (2, n), elements=score))


@pytest.mark.parametrize("name", FORMULAS)
@settings(deadline=None, max_examples=30)
@given(scores=pairs)
def test_both_losses_are_their_formulas(name: str, scores: Scores) -> None:
    critic_loss, _, generator_loss, _ = losses(name, *scores)
    critic_formula, generator_formula = FORMULAS[name]
    for loss, formula in ((critic_loss, critic_formula), (generator_loss, generator_formula)):
        assert loss.shape == ()
        np.testing.assert_allclose(loss.detach().numpy(), formula(*scores), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
def test_critic_and_generator_pull_opposite_ways(name: str) -> None:
    scores = np.array([[0.5, -0.3, 0.2], [-0.4, 0.6, 0.1]])  # within the hinge's margins
    critic_loss, step, generator_loss, made = losses(name, *scores)
    critic_loss.backward()  # type: ignore[no-untyped-call]
    generator_loss.backward()  # type: ignore[no-untyped-call]
    assert step.real.grad is not None
    assert step.fake.grad is not None
    assert made.grad is not None
    assert (step.real.grad < 0).all()  # descent raises D(real)
    assert (step.fake.grad > 0).all()  # and lowers D(fake),
    assert (made.grad < 0).all()  # which the generator raises


def test_wasserstein_pulls_every_sample_alike() -> None:
    critic_loss, step, _, _ = losses("wasserstein", np.array([1e3, -5.0]), np.array([0.0, -1e3]))
    critic_loss.backward()  # type: ignore[no-untyped-call]
    assert step.real.grad is not None
    assert step.real.grad.flatten().tolist() == [-0.5, -0.5]


def test_hinge_leaves_alone_what_is_beyond_the_margin() -> None:
    critic_loss, step, _, _ = losses("hinge", np.array([1.1, 0.9]), np.array([-1.1, -0.9]))
    critic_loss.backward()  # type: ignore[no-untyped-call]
    assert step.real.grad is not None
    assert step.fake.grad is not None
    assert step.real.grad.flatten().tolist() == [0.0, -0.5]
    assert step.fake.grad.flatten().tolist() == [0.0, 0.5]


def test_rpgan_pairs_samples() -> None:
    real, fake = np.array([0.0, 50.0]), np.array([0.0, 50.0])
    paired = losses("rpgan", real, fake)[0].item()
    crossed = losses("rpgan", real, fake[::-1].copy())[0].item()
    assert paired == pytest.approx(np.log(2))
    assert crossed == pytest.approx(25)  # (softplus(50) + softplus(−50)) / 2


def test_perfect_scores_give_the_least_loss() -> None:
    best = np.full(3, 30.0)
    for name in ("hinge", "nonsaturating", "rpgan"):
        assert losses(name, best, -best)[0].item() == pytest.approx(0, abs=1e-12)
