"""The R3GAN pair: counts by hand, a second computation, Fixup's start, refusals."""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancore import entrypoints, options
from gancore.errors import PluginError
from gancore.networks import R3GANCritic, R3GANGenerator
from gancore.networks.r3gan import Downsample, ResidualBlock, Upsample, stage_widths
from gancore_gp import gradient_penalty

SIZES = (8, 16, 32, 64)
SHAPES = [(channels, size, size) for channels in (1, 3) for size in SIZES]
PAIR: list[Any] = [R3GANGenerator, R3GANCritic]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(build: Any, shape: tuple[int, ...], **given: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(shape, **given).parameters())


def block(w: int) -> int:
    """Count a residual block: 1x1 with bias, 3x3 in groups of 16 with bias, 1x1 without."""
    return (w * 2 * w + 2 * w) + (2 * w * 16 * 9 + 2 * w) + 2 * w * w


def test_parameter_counts() -> None:
    # 128: 32,768 + 256 + 36,864 + 256 + 32,768 = 102,912; 64: 35,072; 32: 13,440.
    assert (block(128), block(64), block(32)) == (102_912, 35_072, 13_440)
    blocks = 2 * (102_912 + 102_912 + 35_072 + 13_440)  # stages 4, 8, 16, 32: 508,672
    changes = 128 * 64 + 64 * 32  # two 1x1 convolutions: 10,240
    basis = 128 * 4 * 4  # 2,048
    generator = 64 * 128 + basis + blocks + changes + 32 * 3
    critic = 3 * 32 + blocks + changes + basis + 128
    assert generator == 529_248 == count(R3GANGenerator, (3, 32, 32))
    assert critic == 521_184 == count(R3GANCritic, (3, 32, 32))


def test_parameter_counts_of_the_authors_presets() -> None:
    assert block(768) == 768 * 1536 + 1536 + 1536 * 16 * 9 + 1536 + 1536 * 768 == 2_583_552
    cifar = {"width": 768, "wide": 4}
    generator = 64 * 768 + 768 * 16 + 8 * 2_583_552 + 768 * 3
    critic = 3 * 768 + 8 * 2_583_552 + 768 * 16 + 768
    assert generator == 20_732_160 == count(R3GANGenerator, (3, 32, 32), **cifar)
    assert critic == 20_683_776 == count(R3GANCritic, (3, 32, 32), **cifar)
    # FFHQ at 64 pixels: four stages of 768 channels and one of 384.
    generator = 64 * 768 + 768 * 16 + 8 * block(768) + 768 * 384 + 2 * block(384) + 384 * 3
    assert generator == count(R3GANGenerator, (3, 64, 64), **cifar)


def test_the_docstrings_state_the_counts() -> None:
    for build in PAIR:
        stated = f"Parameters for shape (3, 32, 32) at the defaults: {count(build, (3, 32, 32)):,}."
        assert stated in build.__doc__


@pytest.mark.parametrize(
    ("width", "wide", "size", "widths"),
    [
        (128, 2, 8, [128, 128]),
        (128, 2, 64, [128, 128, 64, 32, 16]),
        (64, 1, 64, [64, 32, 16, 8, 8]),
        (24, 1, 16, [24, 8, 8]),
        (40, 5, 64, [40] * 5),
    ],
)
def test_stages_narrow_after_the_wide_ones(
    width: int, wide: int, size: int, widths: list[int]
) -> None:
    assert stage_widths("network", width, wide, size) == widths


@pytest.mark.parametrize("shape", SHAPES)
def test_generator_maps_latents_to_images(shape: tuple[int, ...]) -> None:
    generator = R3GANGenerator(shape, width=16)
    assert generator.latent == 64
    images = generator(torch.randn(3, 64))
    assert images.shape == (3, *shape)
    assert images.abs().max() < 1
    assert not torch.equal(images[0], images[1])
    small = R3GANGenerator(shape, latent=5, width=8, wide=3, blocks=1)
    assert small(torch.randn(2, 5)).shape == (2, *shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_critic_scores_each_sample_on_its_own(shape: tuple[int, ...]) -> None:
    critic = awake(R3GANCritic(shape, width=16))
    x = torch.randn(3, *shape) * torch.tensor([1.0, 0.1, 20.0]).view(-1, 1, 1, 1)
    x.requires_grad_()
    scores = critic(x)
    assert scores.shape == (3,)
    alone = torch.cat([critic(sample[None]) for sample in x])
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(scores[1], x)
    assert gradient[1].any()
    assert not gradient[0].any()
    assert not gradient[2].any()


def awake(network: Any) -> Any:
    """Give the last convolution of every block the weights that it has not at the start."""
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            nn.init.normal_(module.reduce.weight, 0, 0.2)
            nn.init.normal_(module.expand.bias, 0, 0.2)  # type: ignore[arg-type]
            nn.init.normal_(module.spatial.bias, 0, 0.2)  # type: ignore[arg-type]
    return network


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def residual(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    expand, reduce = weights[f"{name}.expand.weight"], weights[f"{name}.reduce.weight"]
    h = torch.einsum("oi,bihw->bohw", expand[:, :, 0, 0], x)
    h = leaky(h + weights[f"{name}.expand.bias"].view(-1, 1, 1))
    kernel, bias = weights[f"{name}.spatial.weight"], weights[f"{name}.spatial.bias"]
    groups = zip(*map(torch.split, (h, kernel, bias), (16,) * 3, (1, 0, 0)), strict=True)
    h = leaky(torch.cat([F.conv2d(x, k, b, padding=1) for x, k, b in groups], 1))
    return x + torch.einsum("oi,bihw->bohw", reduce[:, :, 0, 0], h)


def bilinear_down(x: Tensor) -> Tensor:
    for dim in (2, 3):
        x = F.pad(x.movedim(dim, -1), (1, 1))
        taps = [x[..., k : k + x.shape[-1] - 3 : 2] for k in range(4)]
        x = ((taps[0] + 3 * taps[1] + 3 * taps[2] + taps[3]) / 8).movedim(-1, dim)
    return x


def bilinear_up(x: Tensor) -> Tensor:
    for dim in (2, 3):
        x = x.movedim(dim, -1)
        padded = F.pad(x, (1, 1))
        even, odd = (padded[..., :-2] + 3 * x) / 4, (3 * x + padded[..., 2:]) / 4
        x = torch.stack([even, odd], -1).flatten(-2).movedim(-1, dim)
    return x


def test_resampling_is_bilinear() -> None:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    up, down = Upsample().double()(x), Downsample().double()(x)
    torch.testing.assert_close(up, bilinear_up(x))
    torch.testing.assert_close(down, bilinear_down(x))
    inside = (..., slice(1, -1), slice(1, -1))
    plain = F.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(up[inside], plain[inside])
    smooth = F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    torch.testing.assert_close(down[inside], smooth[inside])
    one = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(Upsample().double()(one)[inside], torch.ones(1, 1, 14, 14).double())
    torch.testing.assert_close(Downsample().double()(one)[inside], torch.ones(1, 1, 2, 2).double())
    assert not Upsample().state_dict()  # a constant: not part of a checkpoint


@pytest.mark.parametrize("size", SIZES)
def test_networks_equal_the_published_description(size: int) -> None:
    shape, stages = (3, size, size), int(math.log2(size)) - 1
    generator = awake(R3GANGenerator(shape, latent=5, width=32)).double()
    weights = dict(generator.named_parameters())
    z = torch.randn(3, 5, dtype=torch.float64)
    h = torch.einsum("bl,cl->bc", z, weights["input.weight"])[:, :, None, None] * weights["basis"]
    layer = 0
    for stage in range(stages):
        if stage:
            if h.shape[1] != stage_widths("", 32, 2, size)[stage]:
                h = F.conv2d(h, weights[f"layers.{layer}.weight"])
                layer += 1
            h = bilinear_up(h)
            layer += 1
        for _ in range(2):
            h = residual(h, weights, f"layers.{layer}")
            layer += 1
    expected = F.conv2d(h, weights[f"layers.{layer}.weight"]).tanh()
    torch.testing.assert_close(generator(z), expected, rtol=1e-9, atol=1e-9)

    critic = awake(R3GANCritic(shape, width=32)).double()
    weights = dict(critic.named_parameters())
    x = torch.randn(3, *shape, dtype=torch.float64)
    h = F.conv2d(x, weights["layers.0.weight"])
    layer = 1
    for stage in reversed(range(stages)):
        for _ in range(2):
            h = residual(h, weights, f"layers.{layer}")
            layer += 1
        if stage:
            h = bilinear_down(h)
            layer += 1
            if h.shape[1] != stage_widths("", 32, 2, size)[stage - 1]:
                h = F.conv2d(h, weights[f"layers.{layer}.weight"])
                layer += 1
    features = (h * weights["basis.weight"][:, 0]).sum((2, 3))
    expected = features @ weights["output.weight"][0]
    torch.testing.assert_close(critic(x), expected, rtol=1e-9, atol=1e-9)


def test_weights_start_after_fixup() -> None:
    total = 8  # blocks at 32 pixels
    for network in (R3GANGenerator((3, 32, 32)), R3GANCritic((3, 32, 32))):
        blocks = [m for m in network.modules() if isinstance(m, ResidualBlock)]
        assert len(blocks) == total
        gain = math.sqrt(2 / 1.04) * total**-0.25
        for each in blocks:
            assert not each.reduce.weight.any()
            for layer in (each.expand, each.spatial):
                assert layer.bias is not None
                assert not layer.bias.any()
                expected = gain / math.sqrt(layer.weight[0].numel())
                assert layer.weight.std().item() == pytest.approx(expected, rel=0.1)
    assert R3GANGenerator((3, 32, 32)).basis.std().item() == pytest.approx(1, rel=0.1)


def test_the_branches_of_all_blocks_together_have_the_variance_of_one() -> None:
    """Fixup's point: before the last convolution, the mean square is 1/L for an input of 1."""
    for total in (1, 4, 10):
        each = ResidualBlock(64, total)
        each.reduce = nn.Identity()  # type: ignore[assignment]
        h = F.leaky_relu(each.expand(torch.randn(32, 64, 16, 16)), 0.2)
        h = F.leaky_relu(each.spatial(h), 0.2)[..., 1:-1, 1:-1]
        assert h.square().mean().item() == pytest.approx(1 / total, rel=0.2)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_images_and_scores_start_neither_tiny_nor_huge(shape: tuple[int, ...]) -> None:
    images = R3GANGenerator(shape)(torch.randn(16, 64))
    assert 0.2 < images.std() < 0.8
    assert 0.03 < R3GANCritic(shape)(images).std() < 3


@pytest.mark.parametrize("shape", SHAPES)
def test_critic_starts_linear_but_not_constant(shape: tuple[int, ...]) -> None:
    critic = R3GANCritic(shape)
    x = torch.randn(2, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x)
    assert (gradient != 0).all()
    torch.testing.assert_close(gradient[0], gradient[1])
    assert 0.01 < gradient[0].norm() < 10


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_penalty_reaches_the_weights(shape: tuple[int, ...]) -> None:
    critic = R3GANCritic(shape, width=16)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    for update in range(2):
        optimizer.zero_grad()
        gradient_penalty(critic, torch.randn(2, *shape), torch.randn(2, *shape)).backward()  # type: ignore[no-untyped-call]
        for name, parameter in critic.named_parameters():
            if parameter.dim() > 1:
                assert parameter.grad is not None
                assert parameter.grad.isfinite().all()
                asleep = update == 0 and re.search("expand|spatial", name)
                assert bool(parameter.grad.any()) is not bool(asleep), name
        optimizer.step()


def test_critic_learns() -> None:
    critic = R3GANCritic((1, 16, 16), width=32)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    stripes = (torch.arange(16) // 2 % 2 * 2.0 - 1).expand(8, 1, 16, 16)
    for _ in range(40):
        # Random signs: no linear function tells the stripes apart.
        signs = torch.randint(0, 2, (2, 8, 1, 1, 1)) * 2 - 1
        margin = critic(signs[0] * stripes) - critic(signs[1] * stripes.mT)
        optimizer.zero_grad()
        F.softplus(-margin).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert margin.min() > 1


def test_there_is_no_norm() -> None:
    kinds = {nn.Conv2d, nn.Linear, Upsample, Downsample, nn.Tanh}
    for build in PAIR:
        leaves = [m for m in build((3, 16, 16)).modules() if not list(m.children())]
        assert {type(leaf) for leaf in leaves} <= kinds


@pytest.mark.parametrize("build", PAIR)
@pytest.mark.parametrize("shape", SHAPES)
def test_builds_and_runs_on_another_device(build: Any, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = build(shape)
    tensors = [*network.parameters(), *network.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    generates = hasattr(network, "latent")
    y = network(torch.empty(2, *((network.latent,) if generates else shape), device="meta"))
    assert y.shape == ((2, *shape) if generates else (2,))


@pytest.mark.parametrize("build", PAIR)
def test_the_global_seed_decides_the_weights(build: Any) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build((1, 32, 32), width=8).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("build", PAIR)
def test_options_are_documented_and_bounded(build: Any) -> None:
    for name, parameter in options.parameters(build).items():
        assert re.search(rf"^ +{name}: \w", build.__doc__, re.MULTILINE)
        options.validate(build, {name: parameter.default}, "test")
        for absurd in (0, -1, 10**9, "many", 2.5):
            with pytest.raises(PluginError, match=name):
                options.validate(build, {name: absurd}, "test")
    with pytest.raises(PluginError, match="width"):
        options.validate(build, {"width": 20}, "test")


@pytest.mark.parametrize(("width", "near"), [(20, "16"), (3, "8"), (30, "32")])
@pytest.mark.parametrize("build", PAIR)
def test_broken_groups_are_refused(build: Any, width: int, near: str) -> None:
    with pytest.raises(
        ValueError, match=f"{build.__name__}: width {width}: expected .* of 8, .*; use {near}$"
    ):
        build((3, 32, 32), width=width)


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 4, 4), (1, 128, 128), (3, 32, 16), (64,)])
@pytest.mark.parametrize("build", PAIR)
def test_other_sizes_are_refused(build: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected .* size 8 or 16 or 32 or 64; resize") as caught:
        build(shape)
    message = str(caught.value)
    assert message.startswith(f"{build.__name__}: sample shape {shape}: ")
    assert "\n" not in message


def test_recipes_find_them() -> None:
    assert entrypoints.load(entrypoints.get("generator", "r3gan")) is R3GANGenerator
    assert entrypoints.load(entrypoints.get("critic", "r3gan")) is R3GANCritic
