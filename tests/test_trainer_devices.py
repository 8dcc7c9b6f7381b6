"""Where the tensors of an update are, and how they lie in memory: without a GPU, and on one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Spy, assert_same, networks, records_of, weights
from helpers import images as noise
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gancore import CriticStep, GeneratorStep, hookimpl, load_generator, plugin
from gancore.data import Dataset
from gancore.data.digits import digits
from gancore.distributed.ranks import Ranks
from gancore.errors import ContractError
from gancore.isolation.randomness import DataOrder, Stream
from gancore.networks import (
    DCGANCritic,
    DCGANGenerator,
    MLPCritic,
    MLPGenerator,
    R3GANCritic,
    R3GANGenerator,
    ResNetCritic,
    ResNetGenerator,
    WGANCritic,
)
from gancore.provenance.environment import environment
from gancore.provenance.identity import MadeOf
from gancore.scoring import score
from gancore.scoring.sampling import generate
from gancore.testing import OneDevice
from gancore.training import Trainer
from gancore.training.device import MEMORY_FORMATS
from gancore.training.learner import Learner
from gancore.training.objective import Gradients
from gancore_clip import WeightClipping
from gancore_cr import ConsistencyRegularization
from gancore_dragan import DRAGAN
from gancore_gp import GradientPenalty
from gancore_lazy import Lazy
from gancore_lecam import LeCam
from gancore_r1 import R1
from gancore_r2 import R2
from gancore_sn import SpectralNorm

SMALL: dict[str, dict[str, Any]] = {
    "dcgan": {"width": 8},
    "mlp": {"width": 8},
    "resnet": {"width": 8},
    "r3gan": {"width": 8, "blocks": 1},
    "wgan_critic": {"feature_maps": 4},
}
PAIRS: dict[str, tuple[type[nn.Module], type[nn.Module], tuple[int, ...]]] = {
    "dcgan": (DCGANGenerator, DCGANCritic, (1, 8, 8)),
    "mlp": (MLPGenerator, MLPCritic, (3, 8, 8)),
    "points": (MLPGenerator, MLPCritic, (2,)),
    "resnet": (ResNetGenerator, ResNetCritic, (3, 32, 32)),
    "r3gan": (R3GANGenerator, R3GANCritic, (3, 32, 32)),
    "wgan_critic": (ResNetGenerator, WGANCritic, (3, 32, 32)),
}


def made(pair: str, device: str, **changes: Any) -> Trainer:
    """Return a trainer of small networks, with all that an update may have."""
    generator, critic, shape = PAIRS[pair]
    torch.manual_seed(0)
    samples = torch.randint(0, 256, (20, *shape), dtype=torch.uint8)
    sections: dict[str, Any] = {
        "flip": len(shape) == 3,
        "device": device,
        "score": {"metrics": []},
        **changes,
        "train": {
            "steps": 3,
            "batch_size": 4,
            "generator_batch_size": 6,
            "critic_steps": 2,
            "ema": 0.9,
            **changes.pop("train", {}),
        },
    }
    names = {"points": "mlp", "wgan_critic": "resnet"}
    return Trainer(
        generator(shape, latent=4, **SMALL[names.get(pair, pair)]),
        critic(shape, **SMALL["mlp" if pair == "points" else pair]),
        Dataset("noise", samples if len(shape) == 3 else samples.float()),
        **sections,
    )


# On no device at all


class BFloat16(TorchFunctionMode):
    """What autocast does to layers; it knows no meta device."""

    LAYERS = (F.linear, F.conv2d, F.conv_transpose2d)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in self.LAYERS:
            args = tuple(x.bfloat16() if isinstance(x, Tensor) else x for x in args)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Do without what meta tensors lack: generators, autocast, and numbers to copy to the host.

    Returns a list to which the size of each copy to the host is added. Any other raises there.
    """
    copies: list[int] = []

    def none_copied(found: Gradients, update: int, ranks: Ranks) -> dict[str, float]:
        assert found.values.is_meta
        assert found.values.shape == (len(found.names),)
        copies.append(found.values.nbytes)
        return dict.fromkeys(found.names, 0.0)

    monkeypatch.setattr(
        "gancore.training.draws.Stream", lambda seed, name, device="cpu": Stream(seed, name)
    )
    monkeypatch.setattr("gancore.training.learner.to_host", none_copied)
    full = torch.overrides.BaseTorchFunctionMode

    def autocast(self: Learner) -> TorchFunctionMode:
        return BFloat16() if self.settings.train.precision == "bf16" else full()

    monkeypatch.setattr(Learner, "_autocast", autocast)
    return copies


def updated(subject: Trainer, count: int = 1) -> dict[str, float]:
    """Make `count` updates of both networks where every tensor must be on one device."""
    values: dict[str, float] = {}
    with OneDevice():  # type: ignore[no-untyped-call]
        for number in range(count):
            values |= subject.critic_update(number) | subject.generator_update(number)
    optimizers = subject.learner.optimizers.values()
    kept = [state for optimizer in optimizers for state in optimizer.state.values()]
    assert {tensor.device.type for state in kept for tensor in state.values() if tensor.dim()} == {
        "meta"
    }
    assert subject.learner.average is not None
    for module in (subject.generator, subject.critic, subject.learner.average.module):
        assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    return values


PLUGINS: dict[str, list[object]] = {
    "none": [],
    "gp": [GradientPenalty()],
    "gp one-sided": [GradientPenalty(one_sided=True)],
    "r1": [R1()],
    "r1 and r2": [R1(), R2()],
    "lazy r1": [R1(), Lazy(every=2)],
    "clip": [WeightClipping()],
    "sn": [SpectralNorm(n_power_iterations=2)],
    "dragan": [DRAGAN()],
    "dragan gaussian": [DRAGAN(noise="gaussian")],
    "lecam": [LeCam(warm_up=1, relu=True)],
    "cr": [ConsistencyRegularization(fake_weight=1.0, shift=2)],
}
LOSSES = ["wasserstein", "hinge", "nonsaturating", "rpgan"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plugins", PLUGINS.values(), ids=PLUGINS)
def test_an_update_with_each_plugin_is_on_one_device(
    plugins: list[object], precision: str, on_meta: list[int]
) -> None:
    """And nothing but one small tensor of terms is copied to the host, once."""
    subject = made("dcgan", "meta", plugins=plugins, train={"precision": precision})
    penalties = {
        f"penalty/{each.name}"
        for each in subject.plugins.loaded
        if hasattr(each.instance, "penalty")
    }
    assert penalties <= updated(subject, 2).keys()
    assert len(on_meta) == 4
    assert max(on_meta) <= 8 * 8


def test_a_look_at_a_number_would_raise_there(on_meta: list[int]) -> None:
    """The test above can fail."""

    @plugin
    class Looks:
        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            scores = step.scores(step.real).square().mean()
            return scores * (2.0 if scores.item() > 1 else 1.0)

    with pytest.raises(RuntimeError, match="meta"):
        updated(made("dcgan", "meta", plugins=[Looks()]))


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize(
    ("pair", "loss"), [*zip(PAIRS, cycle(LOSSES), strict=False), *product(["dcgan"], LOSSES[1:])]
)
def test_an_update_of_each_pair_is_on_one_device(pair: str, loss: str) -> None:
    optimizer = {"name": "rmsprop" if loss == "rpgan" else "adam"}
    subject = made(pair, "meta", loss=loss, plugins=[GradientPenalty()], optimizer=optimizer)
    assert {"penalty/gp", "critic_loss", "generator_loss"} <= updated(subject).keys()


def astray(use: Callable[[Tensor, Tensor, Tensor], Tensor]) -> object:
    """Return a plugin that draws numbers on the CPU, whatever the samples are on."""

    @plugin
    class Astray:
        @hookimpl
        def penalty(self, step: CriticStep) -> Tensor:
            scores = step.scores(step.real)
            return use(scores, step.real, torch.rand(len(scores))).sum()

        @hookimpl
        def generator_penalty(self, step: GeneratorStep) -> Tensor:
            scores = step.scores(step.fake)
            return use(scores, step.fake, torch.rand(len(scores))).sum()

    return Astray()


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("side", ["critic", "generator"])
@pytest.mark.parametrize(
    "use",
    [
        lambda scores, x, drawn: scores * drawn,
        lambda scores, x, drawn: scores @ drawn,
        lambda scores, x, drawn: scores[drawn.argsort()],
        lambda scores, x, drawn: scores + scores[drawn < 0.5].sum(),
        lambda scores, x, drawn: torch.stack([scores, drawn]),
        lambda scores, x, drawn: scores.sum() * F.conv2d(x, drawn.view(-1, 1, 1, 1)).sum(),
        lambda scores, x, drawn: torch.where(drawn < 0.5, scores, 0),
    ],
    ids=["arithmetic", "product", "index", "mask", "stack", "convolution", "where"],
)
def test_numbers_drawn_on_the_cpu_show(use: Any, side: str) -> None:
    subject = made("dcgan", "meta", plugins=[astray(use)])
    with OneDevice(), pytest.raises(ContractError, match="cpu and meta"):  # type: ignore[no-untyped-call]
        getattr(subject, f"{side}_update")(0)


@pytest.mark.usefixtures("on_meta")
def test_scalars_of_the_cpu_are_fine() -> None:
    subject = made(
        "dcgan", "meta", plugins=[astray(lambda scores, x, drawn: scores * drawn.mean())]
    )
    updated(subject)


# Layout


def channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last)


def kernels(module: nn.Module) -> list[Tensor]:
    """Return the weights whose layout tells: that of a 1×1 kernel, or of one channel, is both."""
    found = [
        parameter
        for parameter in module.parameters()
        if parameter.dim() == 4 and not (parameter.is_contiguous() and channels_last(parameter))
    ]
    assert found
    return found


def assert_channels_last(subject: Trainer) -> None:
    """Check networks, averages and the optimizers' state."""
    assert subject.learner.average is not None
    for module in (subject.generator, subject.critic, subject.learner.average.module):
        assert all(channels_last(kernel) for kernel in kernels(module))
    for optimizer in subject.learner.optimizers.values():
        for parameter, state in optimizer.state.items():
            layouts = {tensor.stride() for tensor in state.values() if tensor.dim()}
            assert layouts == {parameter.stride()}


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEMORY_FORMATS, "cpu", torch.channels_last)


SPATIAL = ["dcgan", "resnet", "r3gan", "wgan_critic"]


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("pair", SPATIAL)
def test_channels_last_is_kept_by_updates(pair: str) -> None:
    spy = Spy()
    subject = made(pair, "cpu", plugins=[GradientPenalty(), spy])
    for number in range(2):
        subject.critic_update(number)
        subject.generator_update(number)
    assert_channels_last(subject)
    assert all(channels_last(step.real) for step in (*spy.critic_steps, *spy.generator_steps))


@pytest.mark.usefixtures("forced")
def test_channels_last_is_kept_by_checkpoints(tmp_path: Path) -> None:
    made("dcgan", "cpu", train={"steps": 1}).run(tmp_path / "run")
    resumed, whole = made("dcgan", "cpu"), made("dcgan", "cpu")
    resumed.run(tmp_path / "run", resume=True)
    assert_channels_last(resumed)
    whole.run(tmp_path / "whole")
    assert_same(weights(resumed.generator), weights(whole.generator))
    assert_same(weights(resumed.critic), weights(whole.critic))
    fresh = DCGANGenerator((1, 8, 8), latent=4, **SMALL["dcgan"])
    loaded = load_generator(tmp_path / "run", generator=fresh)
    assert all(channels_last(kernel) for kernel in kernels(loaded))


def test_channels_last_is_only_another_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        monkeypatch.setitem(MEMORY_FORMATS, "cpu", layout)
        subject = made("resnet", "cpu", plugins=[GradientPenalty()])
        found.append(subject.critic_update(0) | subject.generator_update(0))
        assert {channels_last(each) for each in kernels(subject.critic)} == {
            layout is torch.channels_last
        }
    assert found[0] == pytest.approx(found[1], rel=1e-4, abs=1e-6)


def test_on_the_cpu_nothing_is_laid_out_anew() -> None:
    generator, critic, shape = ResNetGenerator, ResNetCritic, (3, 32, 32)
    pair = generator(shape, width=8).to(memory_format=torch.channels_last), critic(shape, width=8)
    before = [parameter.stride() for module in pair for parameter in module.parameters()]
    data = torch.zeros(9, *shape, dtype=torch.uint8)
    Trainer(*pair, data, train={"steps": 1}, device="cpu")
    assert [p.stride() for module in pair for p in module.parameters()] == before


@pytest.mark.usefixtures("forced")
def test_points_and_volumes_have_no_channels_last() -> None:
    made("points", "cpu").critic_update(0)
    generator, critic = networks()
    critic.volume = nn.Conv3d(2, 2, 3)
    Trainer(generator, critic, noise(), train={"steps": 1, "batch_size": 4}, device="cpu")


def test_the_environment_says_how_exact_float32_is() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        for value in ("tf32", "ieee"):
            torch.backends.cuda.matmul.fp32_precision = value
            found = environment(torch.device("cpu"), MadeOf()).float32
            assert found["matmul"] == value
            assert found["convolution"] in ("tf32", "ieee", "none", "bf16")
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pair", PAIRS)
def test_resume_on_a_gpu_is_bit_exact(tmp_path: Path, pair: str, precision: str) -> None:
    def subject(steps: int, spy: Spy) -> Trainer:
        train = {"steps": steps, "precision": precision}
        plugins = [GradientPenalty(), R1(), Lazy(every=2), spy]
        return made(pair, "cuda", plugins=plugins, train=train)

    spy = Spy()
    subject(1, spy).run(tmp_path / "run")
    resumed, whole = subject(3, spy), subject(3, spy)
    one = resumed.run(tmp_path / "run", resume=True)
    two = whole.run(tmp_path / "whole")
    assert_same(weights(resumed.generator), weights(whole.generator))
    assert_same(weights(resumed.critic), weights(whole.critic))
    assert [record["critic_loss"] for record in records_of(one)] == [
        record["critic_loss"] for record in records_of(two)
    ]
    assert all(step.real.is_cuda and step.fake.is_cuda for step in spy.critic_steps)
    if pair in SPATIAL:
        assert_channels_last(resumed)
        assert all(channels_last(step.real) for step in spy.critic_steps)


@pytest.mark.gpu
def test_a_loaded_generator_on_a_gpu_makes_the_samples_of_its_run(tmp_path: Path) -> None:
    subject = made("resnet", "cuda")
    subject.run(tmp_path / "run")
    torch.manual_seed(1)
    generator = ResNetGenerator((3, 32, 32), latent=4, **SMALL["resnet"])
    loaded = load_generator(tmp_path / "run", generator=generator, device="cuda")
    torch.testing.assert_close(
        generate(loaded, 9, seed=0), generate(subject.sampler(), 9, seed=0), rtol=0, atol=0
    )


@pytest.mark.gpu
def test_an_order_on_a_gpu_is_that_on_the_cpu() -> None:
    there, here = DataOrder(0, "a", 10, "cuda"), DataOrder(0, "a", 10)
    found = there.take(7, 9)
    assert found.is_cuda
    assert found.tolist() == here.take(7, 9).tolist()


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_on_the_cpu() -> None:
    real = digits()
    fake = real.samples.flip(-1)[:300]
    metrics = ["fid", "isc", "kid", "prc"]
    one, two = (
        score(fake, real, metrics=metrics, extractor_name="digits", device=device)
        for device in ("cpu", "cuda")
    )
    assert two["protocol"]["device"] == "cuda"
    assert one["scores"] == pytest.approx(two["scores"], rel=1e-2, abs=1e-3)
