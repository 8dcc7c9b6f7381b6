"""The built-in networks: shapes, counts, layers, refusals, and what a trainer relies on."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gancore import options
from gancore.errors import PluginError
from gancore.networks import DCGANCritic, DCGANGenerator, MLPCritic, MLPGenerator, WGANCritic
from gancore.networks.parts import norm_layer

Build = Callable[[tuple[int, ...]], Any]

NETWORKS = [MLPGenerator, MLPCritic, DCGANGenerator, DCGANCritic, WGANCritic]
NORMS: list[Any] = ["layer", "instance", "group", "none"]
IMAGES = [(channels, size, size) for channels in (1, 3) for size in (8, 16, 32, 64)]
POINTS = [(2,), (2, 5)]

GENERATORS = [
    *[pytest.param(MLPGenerator, shape, id=f"mlp-{shape}") for shape in POINTS + IMAGES],
    *[
        pytest.param(partial(DCGANGenerator, width=4), shape, id=f"dcgan-{shape}")
        for shape in IMAGES
    ],
]
CRITICS = [
    *[pytest.param(MLPCritic, shape, id=f"mlp-{shape}") for shape in POINTS + IMAGES],
    *[
        pytest.param(partial(DCGANCritic, width=4, norm=norm), shape, id=f"dcgan-{norm}-{shape}")
        for norm in NORMS
        for shape in IMAGES
    ],
    *[
        pytest.param(partial(WGANCritic, feature_maps=4), (channels, 32, 32), id=f"wgan-{channels}")
        for channels in (1, 3)
    ],
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def last_weight(network: nn.Module) -> Tensor:
    return [p for p in network.parameters() if p.dim() > 1][-1]


@pytest.mark.parametrize(("build", "shape"), GENERATORS)
def test_generator_maps_latents_to_samples(build: Build, shape: tuple[int, ...]) -> None:
    generator = build(shape)
    assert generator.latent == 64
    samples = generator(torch.randn(3, 64))
    assert samples.shape == (3, *shape)
    assert not torch.equal(samples[0], samples[1])


@pytest.mark.parametrize("build", [MLPGenerator, DCGANGenerator])
def test_latent_is_an_option(build: Any) -> None:
    generator = build((1, 8, 8), latent=7)
    assert generator.latent == 7
    assert generator(torch.randn(2, 7)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("build", [MLPGenerator, DCGANGenerator])
def test_images_lie_in_the_range_of_tanh(build: Any) -> None:
    generator = build((1, 8, 8))
    samples = generator(torch.randn(16, 64))
    assert samples.abs().max() < 1
    with torch.no_grad():
        last_weight(generator).mul_(1000)
    samples = generator(torch.randn(16, 64))
    assert samples.min() == -1  # where float32 rounds tanh
    assert samples.max() == 1


def test_points_are_unbounded() -> None:
    generator = MLPGenerator((2,))
    with torch.no_grad():
        last_weight(generator).mul_(1000)
    assert generator(torch.randn(16, 64)).abs().max() > 10


@pytest.mark.parametrize(("build", "shape"), CRITICS)
def test_critic_scores_each_sample_on_its_own(build: Build, shape: tuple[int, ...]) -> None:
    critic = build(shape)
    x = torch.randn(4, *shape) * torch.tensor([1.0, 5.0, 0.1, 30.0]).view(-1, *[1] * len(shape))
    scores = critic(x)
    assert scores.shape == (4,)
    alone = torch.cat([critic(sample[None]) for sample in x])
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in critic.modules())


@pytest.mark.parametrize(("build", "shape"), CRITICS)
def test_critic_is_unbounded(build: Build, shape: tuple[int, ...]) -> None:
    critic = build(shape)
    with torch.no_grad():
        last_weight(critic).mul_(1000)
    scores = critic(torch.randn(32, *shape))
    assert scores.min() < -2
    assert scores.max() > 2


@pytest.mark.parametrize(("build", "shape"), CRITICS)
def test_every_number_of_a_sample_counts(build: Build, shape: tuple[int, ...]) -> None:
    x = torch.randn(1, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(build(shape)(x).sum(), x)
    assert (gradient != 0).all()


@pytest.mark.parametrize(("build", "shape"), CRITICS)
def test_gradient_penalty_reaches_the_weights(build: Build, shape: tuple[int, ...]) -> None:
    critic = build(shape)
    x = torch.randn(2, *shape, requires_grad=True)
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    weights = [p for p in critic.parameters() if p.dim() in (2, 4)]
    for second in torch.autograd.grad(penalty, weights):
        assert second.isfinite().all()
        assert second.any()


def test_mlp_parameter_counts() -> None:
    hidden = 2 * (128 * 128 + 128)  # 33,024 between three layers of 128
    generator = (64 * 128 + 128) + hidden + (128 * 64 + 64)  # 8,320 + 33,024 + 8,256
    critic = (64 * 128 + 128) + hidden + (128 + 1)  # 8,320 + 33,024 + 129
    assert_count(MLPGenerator, (1, 8, 8), generator, "49,600")
    assert_count(MLPCritic, (1, 8, 8), critic, "41,473")


def test_dcgan_parameter_counts() -> None:
    stem = 64 * 64 * 4 * 4  # 65,536: latent 64 to 64 maps
    generator = stem + 2 * 64 + 64 * 1 * 4 * 4  # batch norm 128, image 1,024
    first = 1 * 32 * 4 * 4 + 32  # 544
    second = 32 * 64 * 4 * 4 + 64  # 32,832
    layer_norm = 2 * 64 * 2 * 2  # 512
    head = 64 * 2 * 2 + 1  # 257
    critic = first + second + layer_norm + head
    assert_count(DCGANGenerator, (1, 8, 8), generator, "66,688")
    assert_count(DCGANCritic, (1, 8, 8), critic, "34,145")


@pytest.mark.parametrize(
    ("norm", "gains_and_shifts"),
    [("layer", 2 * 64 * 2 * 2), ("instance", 2 * 64), ("group", 2 * 64), ("none", 0)],
)
def test_norm_parameter_counts(norm: Any, gains_and_shifts: int) -> None:
    convolutions = (16 * 32 + 32) + (32 * 64 * 16 + 64) + (64 * 4 + 1)
    assert count(DCGANCritic((1, 8, 8), norm=norm)) == convolutions + gains_and_shifts


def test_wgan_critic_parameter_count() -> None:
    first = 3 * 64 * 16 + 64  # 3,136
    second = 64 * 128 * 16 + 128 + 2 * 128 * 8 * 8  # 131,200 and a layer norm of 16,384
    third = 128 * 256 * 16 + 256 + 2 * 256 * 4 * 4  # 524,544 and a layer norm of 8,192
    head = 256 * 16 + 1  # 4,097
    assert_count(WGANCritic, (3, 32, 32), first + second + third + head, "687,553")


def assert_count(build: Any, shape: tuple[int, ...], expected: int, written: str) -> None:
    assert f"{expected:,}" == written
    assert count(build(shape)) == expected
    assert f"Parameters for shape {shape} at the defaults: {written}." in build.__doc__


def test_dcgan_doubles_towards_the_small_maps() -> None:
    def maps(network: nn.Module, kind: Any) -> list[int]:
        return [int(m.out_channels) for m in network.modules() if isinstance(m, kind)]

    for size, generator, critic in [
        (8, [64, 3], [32, 64, 1]),
        (16, [128, 64, 3], [32, 64, 1]),
        (32, [256, 128, 64, 3], [32, 64, 128, 1]),
        (64, [512, 256, 128, 64, 3], [32, 64, 128, 256, 1]),
    ]:
        with torch.device("meta"):
            assert maps(DCGANGenerator((3, size, size)), nn.ConvTranspose2d) == generator
            assert maps(DCGANCritic((3, size, size)), nn.Conv2d) == critic


def wgan_critic(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 64, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, 2, 1),
        nn.LayerNorm([128, 8, 8]),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 256, 4, 2, 1),
        nn.LayerNorm([256, 4, 4]),
        nn.LeakyReLU(0.2),
        nn.Conv2d(256, 1, 4, 1, 0),
    )


def dcgan_critic() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.LayerNorm([64, 2, 2]),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 1, 2),
    )


def dcgan_generator() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (64, 1, 1)),
        nn.ConvTranspose2d(64, 128, 4, 1, 0, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 1, 4, 2, 1, bias=False),
        nn.Tanh(),
    )


def mlp_generator() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 2),
    )


def mlp_critic() -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, 128),
        nn.LeakyReLU(0.2),
        nn.Linear(128, 128),
        nn.LeakyReLU(0.2),
        nn.Linear(128, 128),
        nn.LeakyReLU(0.2),
        nn.Linear(128, 1),
    )


@pytest.mark.parametrize(
    ("build", "shape", "reference", "inputs"),
    [
        (WGANCritic, (1, 32, 32), wgan_critic(1), (1, 32, 32)),
        (WGANCritic, (3, 32, 32), wgan_critic(3), (3, 32, 32)),
        (DCGANCritic, (1, 8, 8), dcgan_critic(), (1, 8, 8)),
        (DCGANGenerator, (1, 16, 16), dcgan_generator(), (64,)),
        (MLPGenerator, (2,), mlp_generator(), (64,)),
        (MLPCritic, (2,), mlp_critic(), (2,)),
    ],
)
def test_equals_the_reference_layer_by_layer(
    build: Any, shape: tuple[int, ...], reference: nn.Module, inputs: tuple[int, ...]
) -> None:
    network = build(shape)
    # Random gains and shifts too, so that no norm is the identity up to its statistics.
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.1)
    with torch.no_grad():
        for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
            assert ours.shape == theirs.shape
            theirs.copy_(ours)

    def kinds(layers: Any) -> list[str]:
        return [str(m) for m in layers if not isinstance(m, nn.Flatten | nn.Unflatten)]

    x = torch.randn(5, *inputs)
    expected = reference(x)
    torch.testing.assert_close(network(x), expected.view(5, *shape * ("Gen" in build.__name__)))
    assert kinds(network.layers) == kinds(reference)


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((1, 28, 28), "28"),
        ((3, 4, 4), "4, 4"),
        ((3, 32, 16), "16"),
        ((64,), "64"),
        ((0, 8, 8), "0"),
    ],
)
@pytest.mark.parametrize("build", [DCGANGenerator, DCGANCritic])
def test_dcgan_refuses_other_sizes(build: Any, shape: tuple[int, ...], seen: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        build(shape)
    message = str(caught.value)
    found, expected = message.split("expected")
    assert build.__name__ in found
    assert seen in found
    assert re.search("size 8 or 16 or 32 or 64", expected)
    assert "resize" in expected
    assert "\n" not in message


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 8, 8), (32, 32), (3, 32, 64)])
def test_wgan_critic_refuses_other_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"WGANCritic: sample shape .*: expected .* size 32; resize"
    ):
        WGANCritic(shape)


def test_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'batch'.*expected layer, instance, group or none"):
        DCGANCritic((1, 8, 8), norm="batch")  # type: ignore[arg-type]


@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (8, 8), (12, 4), (6, 2), (7, 1), (1, 1)])
def test_groups_divide_the_channels(channels: int, groups: int) -> None:
    norm = norm_layer("group", channels, 2)
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


@pytest.mark.parametrize("norm", ["layer", "instance", "group"])
def test_norms_normalize_over_what_they_say(norm: Any) -> None:
    x = torch.randn(2, 16, 4, 4) * torch.linspace(1, 4, 16).view(-1, 1, 1) + 3
    y = norm_layer(norm, 16, 4)(x)
    dims = {"layer": (1, 2, 3), "instance": (2, 3), "group": (2, 3, 4)}[norm]
    y = y.view(2, 8, 2, 4, 4) if norm == "group" else y
    torch.testing.assert_close(y.mean(dims), torch.zeros_like(y.mean(dims)), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        y.var(dims, correction=0), torch.ones_like(y.mean(dims)), rtol=0, atol=1e-3
    )


def test_generator_starts_as_the_dcgan_example() -> None:
    generator = DCGANGenerator((3, 64, 64))
    kernels = [m.weight.detach() for m in generator.modules() if isinstance(m, nn.ConvTranspose2d)]
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    for weight in kernels:
        assert weight.std() == pytest.approx(0.02, rel=0.1)
        assert abs(weight.mean()) < 0.002
    gains = torch.cat([m.weight.detach() for m in norms])
    assert gains.std() == pytest.approx(0.02, rel=0.15)
    assert gains.mean() == pytest.approx(1, abs=0.005)
    assert not any(m.bias.any() for m in norms)


def test_critic_without_norm_starts_with_a_slope() -> None:
    x = torch.randn(64, 1, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(DCGANCritic((1, 8, 8), norm="none")(x).sum(), x)
    assert gradient.flatten(1).norm(dim=1).mean() > 0.02  # N(0, 0.02) weights give 0.004


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [8, 64])
def test_critic_learns_under_every_norm(norm: Any, size: int) -> None:
    critic = DCGANCritic((1, size, size), width=8, norm=norm)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    stripes = (torch.arange(size) // 2 % 2 * 2.0 - 1).expand(8, 1, size, size)
    for _ in range(30):
        real = stripes + 0.3 * torch.randn(8, 1, size, size)
        fake = stripes.mT + 0.3 * torch.randn(8, 1, size, size)
        margin = critic(real) - critic(fake)
        optimizer.zero_grad()
        nn.functional.softplus(-margin).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert margin.min() > 1


@pytest.mark.parametrize("build", NETWORKS)
def test_builds_and_runs_on_another_device(build: Any) -> None:
    shape = (3, 32, 32)
    with torch.device("meta"):
        network = build(shape)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"meta"}
    generates = hasattr(network, "latent")
    x = torch.empty(5, *((network.latent,) if generates else shape), device="meta")
    y = network(x)
    assert y.device.type == "meta"
    assert y.shape == ((5, *shape) if generates else (5,))


@pytest.mark.parametrize("build", NETWORKS)
def test_the_global_seed_decides_the_weights(build: Any) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build((1, 32, 32)).parameters()])

    first = weights(1)
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))


@pytest.mark.parametrize("build", NETWORKS)
def test_options_are_documented_and_bounded(build: Any) -> None:
    known = options.parameters(build)
    assert known
    for name, parameter in known.items():
        assert re.search(rf"^ +{name}: \w", build.__doc__, re.MULTILINE)
        options.validate(build, {name: parameter.default}, "test")
        for absurd in (0, -1, 10**9, "batch", 2.5):
            with pytest.raises(PluginError, match=name):
                options.validate(build, {name: absurd}, "test")


def test_options_reach_the_network() -> None:
    def hidden(network: nn.Module, kind: Any) -> list[tuple[int, ...]]:
        return [tuple(m.weight.shape) for m in network.modules() if isinstance(m, kind)]

    assert hidden(MLPGenerator((2,), latent=3, width=5, depth=1), nn.Linear) == [(5, 3), (2, 5)]
    assert hidden(MLPCritic((2,), width=5, depth=2), nn.Linear) == [(5, 2), (5, 5), (1, 5)]
    assert hidden(WGANCritic((1, 32, 32), feature_maps=2), nn.Conv2d) == [
        (2, 1, 4, 4),
        (4, 2, 4, 4),
        (8, 4, 4, 4),
        (1, 8, 4, 4),
    ]
