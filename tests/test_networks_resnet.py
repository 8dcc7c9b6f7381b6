"""The ResNet pair of WGAN-GP and SNGAN: counts by hand, a second computation, initialization."""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gancore import entrypoints, options
from gancore.errors import PluginError
from gancore.networks import ResNetCritic, ResNetGenerator
from gancore_gp import gradient_penalty

SHAPES = [(channels, size, size) for channels in (1, 3) for size in (32, 48, 64)]
PAIR: list[Any] = [ResNetGenerator, ResNetCritic]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(build: Any, shape: tuple[int, ...], **given: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(shape, **given).parameters())


def conv(inputs: int, outputs: int, size: int) -> int:
    """Count the numbers of a convolution with bias."""
    return inputs * outputs * size * size + outputs


def up(i: int, o: int) -> int:
    """Count a generator block: two batch norms, two 3x3 convolutions, the 1x1 shortcut."""
    return 2 * i + conv(i, o, 3) + 2 * o + conv(o, o, 3) + conv(i, o, 1)


def down(i: int, o: int) -> int:
    """Count a critic block with a shortcut convolution; the first 3x3 keeps the channels."""
    return conv(i, i, 3) + conv(i, o, 3) + conv(i, o, 1)


def first(o: int) -> int:
    """Count the first block of a critic of RGB images."""
    return conv(3, o, 3) + conv(o, o, 3) + conv(3, o, 1)


def test_parameter_counts_of_wgan_gp() -> None:
    # One 3x3 convolution 128 -> 128: 128·128·9 + 128 = 147,584; 1x1: 128·128 + 128 = 16,512.
    linear = 128 * 4 * 4 * 128 + 4 * 4 * 128  # 264,192
    block = 2 * 128 + 147_584 + 2 * 128 + 147_584 + 16_512  # 312,192
    image = 2 * 128 + (128 * 3 * 9 + 3)  # batch norm 256, convolution 3,459
    assert block == up(128, 128)
    assert linear + 3 * block + image == 1_204_483 == count(ResNetGenerator, (3, 32, 32))

    opening = (3 * 128 * 9 + 128) + 147_584 + (3 * 128 + 128)  # 3,584 + 147,584 + 512
    halving = 2 * 147_584 + 16_512  # 311,680
    plain = 2 * 147_584  # 295,168: the shortcut is the identity
    critic = opening + halving + 2 * plain + (128 + 1)
    assert critic == 1_053_825 == count(ResNetCritic, (3, 32, 32))


def test_parameter_counts_of_sngan_at_32() -> None:
    # 256 maps in the generator: the 4.3M that mimicry states. Its critic is WGAN-GP's, 1.05M.
    linear = 128 * 4 * 4 * 256 + 4 * 4 * 256  # 528,384
    generator = linear + 3 * 1_246_976 + 2 * 256 + (256 * 3 * 9 + 3)
    assert up(256, 256) == 1_246_976
    assert generator == 4_276_739 == count(ResNetGenerator, (3, 32, 32), width=256)


def test_parameter_counts_at_48() -> None:
    linear = 128 * 6 * 6 * 512 + 6 * 6 * 512
    blocks = up(512, 256) + up(256, 128) + up(128, 64)
    generator = linear + blocks + 2 * 64 + conv(64, 3, 3)
    assert generator == 4_878_083 == count(ResNetGenerator, (3, 48, 48))
    # The last block does not down-sample, but widens: a shortcut convolution too.
    blocks = first(64) + down(64, 128) + down(128, 256) + down(256, 512) + down(512, 1024)
    assert blocks + 1024 + 1 == 10_141_441 == count(ResNetCritic, (3, 48, 48))


def test_parameter_counts_at_64() -> None:
    linear = 128 * 4 * 4 * 1024 + 4 * 4 * 1024
    blocks = up(1024, 512) + up(512, 256) + up(256, 128) + up(128, 64)
    generator = linear + blocks + 2 * 64 + conv(64, 3, 3)
    assert generator == 12_220_675 == count(ResNetGenerator, (3, 64, 64))
    assert count(ResNetCritic, (3, 64, 64)) == 10_141_441  # as at 48, all blocks down-sampling


def test_the_docstrings_state_the_counts() -> None:
    for build in PAIR:
        stated = f"Parameters for shape (3, 32, 32) at the defaults: {count(build, (3, 32, 32)):,}."
        assert stated in build.__doc__


@pytest.mark.parametrize("shape", SHAPES)
def test_generator_maps_latents_to_images(shape: tuple[int, ...]) -> None:
    generator = ResNetGenerator(shape, width=8)
    assert generator.latent == 128
    images = generator(torch.randn(3, 128))
    assert images.shape == (3, *shape)
    assert images.abs().max() < 1
    assert images.std() > 0.1
    assert not torch.equal(images[0], images[1])
    assert ResNetGenerator(shape, width=2, latent=5)(torch.randn(2, 5)).shape == (2, *shape)


@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_critic_scores_each_sample_on_its_own(shape: tuple[int, ...], pool: Any) -> None:
    critic = ResNetCritic(shape, width=8, pool=pool)
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


def test_critic_has_no_norm_and_no_bound() -> None:
    critic = ResNetCritic((3, 32, 32), width=8)
    assert {type(m) for m in critic.modules() if not list(m.children())} == {
        nn.Conv2d,
        nn.Linear,
        nn.Identity,
    }
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        critic.output.weight.mul_(1e4)
    assert critic(x).abs().max() > 10


@pytest.mark.parametrize("size", [32, 48, 64])
@pytest.mark.parametrize("pool", ["mean", "sum"])
def test_critic_equals_the_published_description(size: int, pool: Any) -> None:
    critic = ResNetCritic((3, size, size), width=8, pool=pool).double()
    weights = iter([nn.init.normal_(p, 0, 0.2) for p in critic.parameters()])

    def convolve(x: Tensor) -> Tensor:
        kernel, bias = next(weights), next(weights)
        return F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2)

    def halve(x: Tensor) -> Tensor:
        corners = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
        return torch.stack(corners).mean(0)

    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    h = halve(convolve(convolve(x).clamp(min=0)))
    h = h + convolve(halve(x))
    # What happens to the maps after the first block, as the papers' tables list it.
    tables = {32: ["down", "plain", "plain"], 48: ["down"] * 3 + ["widen"], 64: ["down"] * 4}
    for kind in tables[size]:
        f = convolve(convolve(h.clamp(min=0)).clamp(min=0))
        if kind == "down":
            h = halve(f) + halve(convolve(h))
        else:
            h = f + (convolve(h) if kind == "widen" else h)
    assert h.shape[-1] == {32: 8, 48: 3, 64: 4}[size] // (2 if size == 64 else 1)
    h = h.clamp(min=0).sum((2, 3)) / (1 if pool == "sum" else h.shape[-1] ** 2)
    expected = h @ next(weights)[0] + next(weights)
    assert next(weights, None) is None
    torch.testing.assert_close(critic(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [32, 48, 64])
def test_generator_equals_the_published_description(size: int) -> None:
    generator = ResNetGenerator((3, size, size), width=8, latent=5).double()
    weights = {k: nn.init.normal_(p, 0, 0.3) for k, p in generator.named_parameters()}

    def convolve(name: str, x: Tensor) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return F.conv2d(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)

    def normalize(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean((0, 2, 3), keepdim=True)
        scaled = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        gain, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return scaled * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    z = torch.randn(6, 5, dtype=torch.float64)
    start = 6 if size == 48 else 4
    h = (z @ weights["input.weight"].T + weights["input.bias"]).view(6, -1, start, start)
    for block in range(4 if size == 64 else 3):
        name = f"blocks.{block}"
        f = double(normalize(f"{name}.norm1", h).clamp(min=0))
        f = normalize(f"{name}.norm2", convolve(f"{name}.conv1", f)).clamp(min=0)
        h = convolve(f"{name}.shortcut", double(h)) + convolve(f"{name}.conv2", f)
    expected = torch.tanh(convolve("output", normalize("norm", h).clamp(min=0)))
    torch.testing.assert_close(generator(z), expected, rtol=1e-8, atol=1e-8)


def test_channels_at_48_and_64_are_sngans() -> None:
    def maps(network: nn.Module) -> list[int]:
        return [m.out_channels for n, m in network.named_modules() if n.endswith("conv2")]

    with torch.device("meta"):
        assert maps(ResNetGenerator((3, 48, 48))) == [256, 128, 64]
        assert maps(ResNetGenerator((3, 64, 64))) == [512, 256, 128, 64]
        assert maps(ResNetCritic((3, 48, 48))) == [64, 128, 256, 512, 1024]
        assert maps(ResNetCritic((3, 64, 64))) == [64, 128, 256, 512, 1024]


@pytest.mark.parametrize("build", PAIR)
def test_weights_start_as_the_authors_draw_them(build: Any) -> None:
    for name, layer in build((3, 32, 32)).named_modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            continue
        assert layer.bias is not None
        assert not layer.bias.any()
        weight = layer.weight.detach()
        area = weight[0, 0].numel()
        gain = math.sqrt(2) if name.endswith(("conv1", "conv2")) else 1.0
        deviation = gain * math.sqrt(2 / (area * (weight.shape[0] + weight.shape[1])))
        bound = math.sqrt(3) * deviation
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.9 * bound
        assert weight.std() == pytest.approx(deviation, rel=0.15)


@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_penalty_reaches_every_weight(shape: tuple[int, ...], pool: Any) -> None:
    critic = ResNetCritic(shape, width=8, pool=pool)
    gradient_penalty(critic, torch.randn(2, *shape), torch.randn(2, *shape)).backward()  # type: ignore[no-untyped-call]
    for parameter in critic.parameters():
        if parameter.dim() > 1:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any()


@pytest.mark.parametrize("build", PAIR)
@pytest.mark.parametrize("shape", SHAPES)
def test_builds_and_runs_on_another_device(build: Any, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = build(shape)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
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
        for absurd in (0, -1, 10**9, "max", 2.5):
            with pytest.raises(PluginError, match=name):
                options.validate(build, {name: absurd}, "test")
    with pytest.raises(PluginError, match="width"):
        options.validate(build, {"width": 7}, "test")


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 16, 16), (1, 128, 128), (3, 32, 48), (64,)])
@pytest.mark.parametrize("build", PAIR)
def test_other_sizes_are_refused(build: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected .* size 32 or 48 or 64; resize") as caught:
        build(shape)
    message = str(caught.value)
    assert message.startswith(f"{build.__name__}: sample shape {shape}: ")
    assert "\n" not in message


def test_unknown_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="pool 'max': expected mean or sum"):
        ResNetCritic((3, 32, 32), pool="max")  # type: ignore[arg-type]


def test_recipes_find_them() -> None:
    assert entrypoints.load(entrypoints.get("generator", "resnet")) is ResNetGenerator
    assert entrypoints.load(entrypoints.get("critic", "resnet")) is ResNetCritic
