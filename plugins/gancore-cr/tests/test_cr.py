"""Consistency regularization against images moved by NumPy, and critics worked out by hand."""

import numpy as np
import pytest
import torch
from penalties import Card
from scipy import stats
from torch import Tensor, nn

from gancore import CriticStep
from gancore.errors import PluginError
from gancore.losses import Hinge
from gancore.plugins import Plugins, load, wrap
from gancore.testing import Scene, Subject
from gancore_cr import (
    ConsistencyRegularization,
    ImageError,
    consistency_penalty,
    flip_and_shift,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def conv() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 6 * 6, 1)
    ).double()


def moved_by_hand(image: np.ndarray, down: int, right: int, mirrored: bool) -> np.ndarray:
    """Flip, pad by reflection, and cut out: what T does to an image (C, H, W)."""
    if mirrored:
        image = image[..., ::-1]
    pad = max(abs(down), abs(right))
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    return padded[:, pad - down : pad - down + height, pad - right : pad - right + width]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 9, 6)])
@pytest.mark.parametrize("batch", [8, 1])
def test_images_of_any_shape(shape: tuple[int, ...], batch: int) -> None:
    subject = Subject(ConsistencyRegularization, {"fake_weight": 1.0})
    assert Scene(subject, shape=shape, batch=batch).value("penalty").item() > 0


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("shift", "shape"), [(0, (1, 3, 4)), (1, (2, 5, 4)), (2, (1, 5, 6))])
def test_every_move_is_exact_and_equally_likely(
    flip: bool, shift: int, shape: tuple[int, ...]
) -> None:
    image = normal(*shape)
    n = 200 * (2 * shift + 1) ** 2 * (1 + flip)
    seeded = torch.Generator().manual_seed(1)
    found = flip_and_shift(image.expand(n, *shape), shift=shift, flip=flip, generator=seeded)
    possible = {
        moved_by_hand(image.numpy(), down, right, mirrored).tobytes()
        for down in range(-shift, shift + 1)
        for right in range(-shift, shift + 1)
        for mirrored in ([False, True] if flip else [False])
    }
    assert len(possible) == (2 * shift + 1) ** 2 * (1 + flip)
    counts = dict.fromkeys(possible, 0)
    for each in found.numpy():
        counts[each.tobytes()] += 1  # KeyError: a move that there should not be
    if len(counts) > 1:
        assert stats.chisquare(list(counts.values())).pvalue > 0.01


def test_the_largest_shift() -> None:
    image = normal(1, 3, 3)
    found = {each.numpy().tobytes() for each in flip_and_shift(image.expand(900, 1, 3, 3), shift=2)}
    assert moved_by_hand(image.numpy(), 2, -2, True).tobytes() in found
    assert len(found) <= 2 * 25


@pytest.mark.parametrize("flip", [True, False])
def test_critic_that_reads_one_pixel(flip: bool) -> None:
    x, seeded = normal(50, 2, 7, 5), torch.Generator()
    moved = flip_and_shift(x, shift=3, flip=flip, generator=seeded.manual_seed(9)).numpy()
    found = consistency_penalty(
        lambda x: x[:, 1, 4, 2],
        x,
        weight=2.5,
        shift=3,
        flip=flip,
        generator=seeded.manual_seed(9),
    )
    expected = 2.5 * np.mean((x.numpy()[:, 1, 4, 2] - moved[:, 1, 4, 2]) ** 2)
    assert found.shape == ()
    assert found.item() == pytest.approx(expected, rel=1e-12)
    assert expected > 0.1


def test_critic_that_reads_one_pixel_by_hand() -> None:
    """Pixel (0, 0) of (1 2; 4 8), mirrored or not, is 2 or 1: the penalty is a share of 7·1²."""
    x = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).expand(1000, 1, 2, 2)
    seeded = torch.Generator().manual_seed(0)
    value = consistency_penalty(
        lambda x: x[:, 0, 0, 0], x, weight=7.0, shift=0, generator=seeded
    ).item()
    assert value * 1000 / 7 == pytest.approx(round(value * 1000 / 7), abs=1e-3)
    assert value / 7 == pytest.approx(0.5, abs=0.05)


def test_critics_without_preference() -> None:
    x, w = normal(6, 2, 8, 8), normal(2, 8)
    flat = normal(6, 2, 1, 1).expand(6, 2, 8, 8)
    assert consistency_penalty(lambda x: (x.sum(3) * w).sum((1, 2)), x, shift=0).item() < 1e-20
    assert consistency_penalty(conv(), flat).item() < 1e-20
    assert consistency_penalty(conv(), x, shift=0, flip=False).item() == 0
    assert consistency_penalty(conv(), x).item() > 1e-4


def test_both_scores_carry_their_gradient() -> None:
    critic, x, seeded = conv(), normal(4, 2, 8, 8), torch.Generator()
    found = consistency_penalty(critic, x, weight=1.0, generator=seeded.manual_seed(0))
    gradient = torch.autograd.grad(found, critic[3].weight)[0]
    moved = flip_and_shift(x, generator=seeded.manual_seed(0))
    with torch.no_grad():  # the last layer is linear: D(x) − D(T(x)) = w·(h(x) − h(T(x)))
        h = critic[:3](x) - critic[:3](moved)
        expected = (2 * (h @ critic[3].weight.T) * h).mean(0, keepdim=True)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("fake_weight", [0.0, 3.0])
def test_hook_is_the_function_and_shares_the_forward_passes(fake_weight: float) -> None:
    critic, real, fake = conv(), normal(3, 2, 8, 8), normal(3, 2, 8, 8, seed=1)
    torch.manual_seed(5)
    expected = consistency_penalty(critic, real, weight=2.0, shift=1)
    if fake_weight:
        expected = expected + consistency_penalty(critic, fake, weight=fake_weight, shift=1)
    torch.manual_seed(5)
    cr = ConsistencyRegularization(weight=2.0, fake_weight=fake_weight, shift=1)
    plugins, step, seen = Plugins([wrap(Hinge()), wrap(cr)]), CriticStep(critic, real, fake), []
    critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    ((loaded, scale, value),) = plugins.answer_penalties("penalty", step)
    loss = plugins.answer_loss("critic_loss", step)
    assert (loaded.name, scale) == ("cr", 1)
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
    assert len(seen) == (4 if fake_weight else 3)
    for x in (step.real, step.fake):
        ((place, own),) = [(n, each) for n, each in enumerate(seen) if torch.equal(each, x)]
        assert own.requires_grad
        del seen[place]
    assert not any(each.requires_grad for each in seen)  # those that were moved
    parameters = list(critic.parameters())
    assert all(each.isfinite().all() for each in torch.autograd.grad(loss + value, parameters))
    assert step.real.grad is None


@pytest.mark.parametrize("wants_grad", [True, False])
def test_arguments_are_left_as_they_were(wants_grad: bool) -> None:
    critic, x = conv(), normal(4, 2, 8, 8).requires_grad_(wants_grad)
    before = x.detach().clone()
    consistency_penalty(critic, x).backward()
    assert torch.equal(x, before)
    assert x.grad is None
    assert x.requires_grad == wants_grad
    assert critic[0].weight.grad.abs().max() > 0


def test_meta_device() -> None:
    critic, x = nn.Conv2d(1, 1, 4, device="meta"), torch.empty(3, 1, 4, 4, device="meta")
    value = consistency_penalty(critic, x, shift=2)
    value.backward()
    assert (value.device.type, value.shape) == ("meta", ())


@pytest.mark.parametrize("shape", [(4, 5), (4, 8, 8), (1, 2, 3, 8, 8)])
def test_samples_that_are_no_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"neither flips nor shifts.*needs images \(B, C, H, W\)"):
        consistency_penalty(lambda x: x.flatten(1).sum(1), normal(*shape))


@pytest.mark.parametrize(("shift", "size"), [(4, (4, 9)), (4, (9, 4)), (1, (1, 8)), (-1, (8, 8))])
def test_shift_that_does_not_fit(shift: int, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"shift is {shift}, expected 0 to .*{size[0]}×{size[1]}"):
        flip_and_shift(normal(2, 1, *size), shift=shift)


def test_a_run_on_points_says_so_as_a_user_error() -> None:
    x = normal(4, 2)
    plugins = Plugins([wrap(Hinge()), wrap(ConsistencyRegularization())])
    with pytest.raises(PluginError, match="needs images") as caught:
        list(plugins.answer_penalties("penalty", CriticStep(lambda x: x[:, 0], x, x)))
    assert isinstance(caught.value, ImageError)
    assert "plugin cr (gancore-cr" in caught.value.__notes__[0]


@pytest.mark.parametrize("option", ["weight", "fake_weight", "shift"])
@pytest.mark.parametrize("wrong", [-1, "3", True, float("inf"), [1]])
def test_wrong_numbers(option: str, wrong: object) -> None:
    with pytest.raises(PluginError, match=f"cr: {option}: expected"):
        load("cr", {option: wrong})


def test_other_options() -> None:
    with pytest.raises(PluginError, match="cr: shift: expected"):
        load("cr", {"shift": 1.5})
    with pytest.raises(PluginError, match="cr: flip: expected"):
        load("cr", {"flip": 1})
    with pytest.raises(PluginError, match="nothing is left to penalize"):
        load("cr", {"shift": 0, "flip": False})
    assert load("cr", {"weight": 5, "shift": 0}).options == {
        "weight": 5.0,
        "fake_weight": 0.0,
        "shift": 0,
        "flip": True,
    }


class TestCard(Card):
    name = "cr"
    plugin = ConsistencyRegularization
