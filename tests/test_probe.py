"""The probe: which critics score each sample alone, told against samples that are changed."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from critics import CRITICS, MODULES, B, D, Scoring, T, batchnorm, samples, through
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from gancore import CriticStep, input_gradient
from gancore.checks import dependence as probe
from gancore.checks.dependence import BatchStatisticsWarning, unprobed
from gancore.errors import ContractError
from gancore_dragan import dragan_penalty
from gancore_gp import gradient_penalty
from gancore_r1 import r1_penalty
from gancore_r2 import r2_penalty


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed, and let no test's functions have passed in another one."""
    torch.manual_seed(0)
    for name in ("_PASSED", "_WARNED"):
        monkeypatch.setattr(probe, name, type(probe._PASSED)())


def depends(critic: Scoring, x: Tensor) -> bool:
    """Whether the middle score moves with the other samples: no derivative is asked."""
    scores = []
    for other in (x, torch.cat([x[: B // 2] + 0.5, x[B // 2 : B // 2 + 1], x[B // 2 + 1 :] - 0.3])):
        torch.manual_seed(1)
        scores.append(copy.deepcopy(critic)(other).flatten()[B // 2].item())
    return abs(scores[0] - scores[1]) > 1e-9


@pytest.mark.parametrize("name", CRITICS)
def test_critics_are_told_apart(name: str) -> None:
    critic, x = CRITICS[name](), samples(B, B if "along the batch" in name else T, D)
    assert depends(critic, x) == name.startswith("!")

    def by_step(**options: Any) -> Tensor:
        step = CriticStep(critic, x, x, **options)
        return step.input_gradient(step.real)

    if not name.startswith("!"):
        assert by_step().shape == input_gradient(critic, x).shape == x.shape
        return
    reason = r"score of sample 3 depends on [1-5] other.*layer, group, instance.*allow_batch_stat"
    for _ in range(2):  # failures are never remembered
        for call in (by_step, lambda: input_gradient(critic, x)):
            with pytest.raises(ContractError, match=reason):
                call()
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(critic(leaf).sum(), leaf)
    told = r"depends on [1-5] other samples?, which is allowed.*effect on the sum of all scores"
    with pytest.warns(BatchStatisticsWarning, match=told):
        allowed = by_step(allow_batch_statistics=True)
    torch.testing.assert_close(allowed, plain)
    torch.testing.assert_close(by_step(allow_batchnorm=True), plain)  # without a second warning
    torch.testing.assert_close(input_gradient(critic, x, allow_batch_statistics=True), plain)
    with pytest.raises(ContractError):  # what was allowed has not passed
        by_step()


@pytest.mark.parametrize(
    "penalty",
    [
        lambda critic, x, **allow: gradient_penalty(critic, x, x + 1, **allow),
        r1_penalty,
        r2_penalty,
        dragan_penalty,
    ],
)
def test_the_functions_refuse_and_allow(penalty: Callable[..., Tensor]) -> None:
    """Packs of two, each repeated: twice the gradient, so four times its square."""
    w = samples(T * D)

    def packs(x: Tensor) -> Tensor:
        return (x.flatten(1) @ w).reshape(B // 2, 2).sum(1).repeat_interleave(2)

    x = samples()
    with pytest.raises(ContractError, match="depends on 1 other sample,"):
        penalty(packs, x)
    norm = 2 * w.norm().item()
    with pytest.warns(BatchStatisticsWarning):
        value = penalty(packs, x, allow_batch_statistics=True).item()
    expected = 5 * norm**2 if penalty in (r1_penalty, r2_penalty) else 10 * (norm - 1) ** 2
    assert value == pytest.approx(expected, rel=1e-12)


class Counting(torch.autograd.Function):
    """Half of x, which counts its backward passes."""

    count = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        Counting.count += 1
        return gradient / 2


@pytest.fixture
def backwards() -> Callable[[], int]:
    """Tell how many backward passes there were since last asked."""
    Counting.count = 0

    def told() -> int:
        count, Counting.count = Counting.count, 0
        return count

    return told


def counting() -> nn.Module:
    return through(
        lambda parts, x: parts.head(Counting.apply(x).flatten(1)).tanh(), head=nn.Linear(T * D, 1)
    ).double()


class Loop:
    """A user's own class, with a critic in it."""

    def __init__(self) -> None:
        self.critic = counting()

    def score(self, x: Tensor, sign: float = 1.0) -> Tensor:
        return sign * self.critic(x)


GLOBAL = counting()


@pytest.mark.parametrize(
    "made",
    [
        lambda kept: kept.critic,
        lambda kept: lambda x: kept.critic(x),
        lambda kept: lambda x, critic=kept.critic: critic(x),
        lambda kept: kept.score,
        lambda kept: functools.partial(kept.score, sign=-1.0),
        lambda kept: lambda x: GLOBAL(x),
    ],
    ids=["module", "closure", "default", "method", "partial", "global"],
)
def test_once_a_critic(made: Callable[[Loop], Scoring], backwards: Callable[[], int]) -> None:
    """Whether it is the same object, or made anew at each call."""
    kept, x, counts = Loop(), samples(), []
    for _ in range(3):
        step = CriticStep(made(kept), x, x)
        for point in (step.real, step.fake):
            step.input_gradient(point)
            counts.append(backwards())
    assert counts == [2, 1, 1, 1, 1, 1]
    r1_penalty(made(kept), x)
    assert backwards() == 1


def test_it_can_be_left_out(backwards: Callable[[], int]) -> None:
    critic, x = counting(), samples()
    counts = []
    for context in (unprobed(), nullcontext(), nullcontext()):
        with context:
            input_gradient(critic, x)
        counts.append(backwards())
    assert counts == [1, 2, 1]


def test_another_critic_in_the_same_function_is_another_one() -> None:
    def penalized(critic: nn.Module) -> Tensor:
        return r1_penalty(lambda x: critic(x), samples())

    penalized(MODULES["layer norm"]().double())
    with pytest.raises(ContractError, match="depends on 5 other"):
        penalized(batchnorm().double())
    penalized(MODULES["layer norm"]().double())


def test_another_critic_of_the_same_name_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def penalized() -> Tensor:
        return r1_penalty(lambda x: GLOBAL(x), samples())

    penalized()
    monkeypatch.setitem(globals(), "GLOBAL", batchnorm().double())
    with pytest.raises(ContractError, match="depends on 5 other"):
        penalized()


def test_another_mode_is_another_critic() -> None:
    critic, x = batchnorm().double().eval(), samples()
    for _ in range(2):
        r1_penalty(critic.eval(), x)
        with pytest.raises(ContractError, match="depends on"):
            r1_penalty(critic.train(), x)
        critic.eval()[2].train()  # its batch normalization alone
        with pytest.raises(ContractError, match="depends on"):
            r1_penalty(critic, x)


def test_what_is_gone_is_forgotten() -> None:
    critics = [counting()]
    r1_penalty(critics[0], samples())
    r1_penalty(lambda x, critic=critics[0]: critic(x), samples())
    assert len(probe._PASSED._references) == 2
    critics.clear()
    assert not probe._PASSED._references


def test_what_takes_no_weak_reference_is_probed_each_time(backwards: Callable[[], int]) -> None:
    class Slotted:
        __slots__ = ("module",)

        def __init__(self) -> None:
            self.module = counting()

        def __call__(self, x: Tensor) -> Tensor:
            out: Tensor = self.module(x)
            return out

    critic, x = Slotted(), samples()
    for _ in range(2):
        input_gradient(critic, x)
        assert backwards() == 2


def scaled(critic: nn.Module) -> tuple[Scoring, Tensor]:
    scale = torch.zeros((), dtype=torch.float64)
    return (lambda x: scale * critic(x)), scale


def test_where_the_own_gradient_is_zero_the_next_pass_is_probed() -> None:
    critic, scale = scaled(batchnorm().double())
    assert input_gradient(critic, samples()).abs().max() == 0
    scale.fill_(1)
    with pytest.raises(ContractError, match="depends on 5 other"):
        input_gradient(critic, samples())


def test_a_pass_is_a_pass_after_that(backwards: Callable[[], int]) -> None:
    critic, scale = scaled(counting())
    counts = []
    for value in (0, 0, 1, 1, 0):
        scale.fill_(value)
        input_gradient(critic, samples())
        counts.append(backwards())
    assert counts == [2, 2, 2, 1, 1]


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("row", [0, B // 2])
def test_what_is_not_finite_is_left_alone(bad: float, row: int) -> None:
    """It makes all rows of a batch statistic NaN, and one row of a sound critic's."""
    dependent, sound, x = batchnorm().double(), MODULES["layer norm"]().double(), samples()
    x[row, 0, 0] = bad
    assert not input_gradient(dependent, x).isfinite().any()
    assert input_gradient(sound, x).flatten(1).isfinite().all(1).sum() == B - 1
    with pytest.raises(ContractError, match="depends on"):  # it is not remembered
        input_gradient(dependent, samples())


def test_rows_that_are_finite_count_beside_others() -> None:
    """Packs of two: the middle one's other half is told, whatever else there is."""

    def packs(x: Tensor) -> Tensor:
        pairs = x.flatten(1).sum(1).reshape(B // 2, 2).sum(1).repeat_interleave(2)
        return pairs + 0 * (x[0].sum() * torch.inf)

    with pytest.raises(ContractError, match="depends on 1 other sample,"):
        input_gradient(packs, samples())


def test_a_pass_with_rows_that_are_not_finite_is_no_pass() -> None:
    scale = torch.tensor(torch.inf, dtype=torch.float64)

    def critic(x: Tensor) -> Tensor:
        return x.flatten(1).sum(1) + scale * x[:1].sum()

    assert input_gradient(critic, samples())[1:].isfinite().all()
    scale.fill_(1)
    with pytest.raises(ContractError, match="depends on 1 other sample,"):
        input_gradient(critic, samples())


def test_one_sample_is_no_evidence() -> None:
    critic = through(lambda parts, x: x.sum().expand(len(x)))
    input_gradient(critic, samples(1, T, D))
    with pytest.raises(ContractError, match="sample 1 depends on 1 other"):
        input_gradient(critic, samples(2, T, D))


def test_tensors_without_values_are_left_alone() -> None:
    x = torch.randn(4, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert input_gradient(nn.Linear(3, 1), mode.from_tensor(x)).shape == (4, 3)
    assert input_gradient(nn.Linear(3, 1, device="meta"), x.to("meta")).shape == (4, 3)


def test_random_numbers_and_buffers_are_kept() -> None:
    """A checkpointed part runs again in each backward pass, and here changes both."""

    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(T * D, 8), nn.Linear(8, 1)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(()))

        def part(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.calls += 1
                self.last = torch.rand(())
            out: Tensor = self.inner(x.flatten(1)).tanh()
            return out

        def forward(self, x: Tensor) -> Tensor:
            out = checkpoint(self.part, x, use_reentrant=False, preserve_rng_state=False)
            scores: Tensor = self.head(F.dropout(out, 0.3))
            return scores

    one, x, found = Restless().double(), samples(), []
    other = copy.deepcopy(one)
    for critic, left_out in ((one, False), (other, True)):
        torch.manual_seed(5)
        if left_out:
            with unprobed():
                gradient = input_gradient(critic, x)
        else:
            gradient = input_gradient(critic, x)
        buffers = [critic.calls.clone(), critic.last.clone()]
        gradient.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append([gradient, *buffers, critic.last, critic.inner.weight.grad, torch.rand(3)])
    for probed, plain in zip(*found, strict=True):
        assert isinstance(probed, Tensor)
        assert isinstance(plain, Tensor)
        assert torch.equal(probed, plain)


def test_a_warning_for_each_critic() -> None:
    x = samples()
    critics = [batchnorm().double() for _ in range(2)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for critic in critics * 2:
            r1_penalty(critic, x, allow_batch_statistics=True)
    assert [each.category for each in caught] == [BatchStatisticsWarning] * 2
    assert caught[0].filename == __file__


class Holder:
    """Somebody's loop: the critic is an attribute, an item or an entry of what a lambda names."""

    def __init__(self, layer: nn.Module) -> None:
        self.critic = nn.Sequential(nn.Linear(3, 8), layer, nn.Tanh(), nn.Linear(8, 1))
        self.all = [nn.Identity(), self.critic]
        self.named = {"D": self.critic}


@pytest.mark.parametrize("name", ["attribute", "item", "entry"])
def test_a_pass_is_of_the_critic_that_a_lambda_finds(name: str) -> None:
    def penalty(loop: Holder) -> Tensor:
        scorers: dict[str, Callable[[Tensor], Tensor]] = {
            "attribute": lambda z: loop.critic(z),
            "item": lambda z, nets=loop.all: nets[1](z),  # type: ignore[misc]
            "entry": lambda z, nets=loop.named: nets["D"](z),  # type: ignore[misc]
        }
        return r1_penalty(scorers[name], torch.randn(6, 3))

    penalty(Holder(nn.LayerNorm(8)))
    with pytest.raises(ContractError, match="depends on 5 other samples"):
        penalty(Holder(nn.BatchNorm1d(8)))


def test_a_pass_is_of_the_layers_that_a_critic_had() -> None:
    loop = Holder(nn.LayerNorm(8))
    r1_penalty(loop.critic, torch.randn(6, 3))
    loop.critic[1] = nn.BatchNorm1d(8)
    with pytest.raises(ContractError, match="depends on 5 other samples"):
        r1_penalty(loop.critic, torch.randn(6, 3))
