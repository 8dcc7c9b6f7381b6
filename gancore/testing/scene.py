"""Scenes: a plugin at work on a small GAN, the same one each time it is set up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gancore.checks.marks import implemented
from gancore.hooks import hookimpl
from gancore.isolation.randomness import Randomness, Stream
from gancore.plugins import Loaded, Plugins, load, plugin
from gancore.step import Average, CriticStep, GeneratorStep

LOSSES = {"critic_loss": "critic", "generator_loss": "generator"}
PENALTIES = {"penalty": "critic", "generator_penalty": "generator"}
ANSWERS = {**LOSSES, **PENALTIES}
"""The hooks that answer a scalar, and which network it trains."""

LATENT = 6
Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = ((5,), (1, 8, 8), (3, 32, 32))
GREY: Shape = (1, 8, 8)
UPDATES = 64
"""How many updates a penalty may leave out before it is taken for one that never answers."""


class CheckFailed(Exception):
    """A plugin does not keep its contract; the message says what was found."""


@dataclass(frozen=True)
class Subject:
    """A plugin class with options, built anew for each scene.

    cls      the class, decorated with @gancore.plugin
    options  its options, as Python values
    name     what it is called in records

    The class says what it needs of the small GAN, in ClassVars:

    check_group   samples that it takes together, such as the 10 of a pack: each batch, and each
                  half of one, is a multiple of it; 1 if it says nothing
    check_batch   samples in a batch; the first multiple of 2·check_group from 8 on
    check_shapes  the shapes of samples that it takes; a vector, grey and colour images if it says
                  nothing. All checks but `shapes` use (1, 8, 8), or else the first of them
    check_critic  makes a critic for samples of a shape: `(shape) -> nn.Module`. Smooth, so that
                  finite differences hold
    """

    cls: type
    options: dict[str, Any] = field(default_factory=dict)
    name: str = "subject"

    def make(self) -> Any:
        """Return a new instance."""
        return self.cls(**self.options)

    @property
    def hooks(self) -> list[str]:
        """The hooks that it implements itself; wrapping those of others does not count."""
        return implemented(self.cls)

    @property
    def answers(self) -> list[str]:
        """Those of its hooks that answer a scalar."""
        return [hook for hook in self.hooks if hook in ANSWERS]

    @property
    def penalties(self) -> list[str]:
        """Those of its hooks that answer a penalty."""
        return [hook for hook in self.hooks if hook in PENALTIES]

    @property
    def group(self) -> int:
        """How many samples belong together."""
        return int(getattr(self.cls, "check_group", 1))

    @property
    def batch(self) -> int:
        """How many samples are in a batch. Raises CheckFailed if its halves split a group."""
        twice = 2 * self.group
        batch = int(getattr(self.cls, "check_batch", -(-8 // twice) * twice))
        if batch % twice or batch < 1:
            raise CheckFailed(
                f"check_batch is {batch}: a half of it must hold whole groups of {self.group} "
                f"(check_group), so expected a multiple of {twice}"
            )
        return batch

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of samples that it takes."""
        return tuple(tuple(shape) for shape in getattr(self.cls, "check_shapes", SHAPES))

    @property
    def shape(self) -> Shape:
        """The shape of samples in all checks but `shapes`."""
        return GREY if GREY in self.shapes else self.shapes[0]

    def refuse_needs(self) -> None:
        """Raise CheckFailed for a ClassVar that is not what the kit takes there."""
        for name in ("check_group", "check_batch"):
            size: object = getattr(self.cls, name, 1)
            if not (isinstance(size, int) and size >= 1):
                raise CheckFailed(f"{name} is {size!r}: expected an integer of at least 1")
        shapes: object = getattr(self.cls, "check_shapes", SHAPES)
        if not (isinstance(shapes, list | tuple) and shapes and all(map(_is_shape, shapes))):
            raise CheckFailed(
                f"check_shapes is {shapes!r}: expected shapes of a sample, such as ((3, 32, 32),)"
            )
        if not callable(make := getattr(self.cls, "check_critic", SmoothCritic)):
            raise CheckFailed(f"check_critic is {make!r}: expected what makes a critic for a shape")
        if not isinstance(reasons := getattr(self.cls, "inapplicable", {}), dict):
            raise CheckFailed(f"inapplicable is {reasons!r}: expected a dict of reasons by check")

    def critic(self, shape: Shape, dtype: torch.dtype) -> nn.Module:
        """Return a new critic for samples of a shape. Raises CheckFailed if that is none."""
        make: Callable[[Shape], nn.Module] = getattr(self.cls, "check_critic", SmoothCritic)
        critic = make(shape)
        if not isinstance(critic, nn.Module):
            raise CheckFailed(f"check_critic made {critic!r}, expected an nn.Module")
        return critic.to(dtype)


def _is_shape(shape: object) -> bool:
    """Whether this is (d,) or (C, H, W)."""
    return (
        isinstance(shape, list | tuple)
        and len(shape) in (1, 3)
        and all(type(size) is int and size > 0 for size in shape)
    )


class SmoothCritic(nn.Module):
    """A tanh network: smooth, so that finite differences hold; steep, so that no norm is small."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = torch.Size(shape).numel()
        self.inner = nn.Linear(size, 8)
        self.outer = nn.Linear(8, 1)
        with torch.no_grad():
            self.inner.weight.normal_(0, 1.5 / size**0.5)
            self.outer.weight.normal_(0, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B, 1) for x (B, *)."""
        scores: Tensor = self.outer(torch.tanh(self.inner(x.flatten(1))))
        return scores


class SmoothGenerator(nn.Module):
    """One layer and tanh."""

    latent = LATENT

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.layer = nn.Linear(LATENT, torch.Size(shape).numel())

    def forward(self, z: Tensor) -> Tensor:
        """Return samples (B, *) for z (B, LATENT)."""
        return torch.tanh(self.layer(z)).reshape(-1, *self.shape)


@plugin
class Companion:
    """A penalty for plugins that act on other plugins' penalties: a small weight decay."""

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        """Answer the mean square of the critic's scores."""
        return 1e-3 * step.scores(step.real).square().mean()


class Scene:
    """A plugin, a loss, a companion penalty, two networks and samples, all from one seed.

    shape     of one sample; by default that of the subject
    batch     how many samples; by default what the subject says
    constant  whether all weights of the critic are zero, so that its gradient is zero everywhere
    ready     whether the hook `setup` was called
    build     the global generators' seed when the plugin is made, which nothing should depend on
    process   tells apart what is drawn from the global generators, as on one of several processes
    """

    def __init__(
        self,
        subject: Subject,
        *,
        shape: Shape | None = None,
        batch: int | None = None,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
        constant: bool = False,
        ready: bool = True,
        loss: str = "wasserstein",
        others: tuple[Loaded, ...] = (),
        build: int = 0,
        process: int = 0,
    ) -> None:
        Stream(0, "scene").seed_global(0)
        self.subject = subject
        shape, batch = shape or subject.shape, batch or subject.batch
        with torch.device(device):
            self.critic = subject.critic(shape, dtype)
            self.generator = SmoothGenerator(shape).to(dtype)
            self.real = torch.randn(batch, *shape, dtype=dtype).clamp(-1, 1)
            self.latents = torch.randn(batch, LATENT, dtype=dtype)
        if constant:
            with torch.no_grad():
                for parameter in self.critic.parameters():
                    parameter.zero_()
        self.randomness = Randomness(0, process=process)
        Stream(0, "build").seed_global(build)
        self.instance = subject.make()
        losses = [] if set(LOSSES) & set(subject.hooks) else [load(loss)]
        self.companion = Loaded("companion", Companion())
        own = Loaded(subject.name, self.instance)
        self.plugins = Plugins([*losses, self.companion, own, *others], self.randomness)
        self.plugins.prepare_critic(self.critic)
        if ready:
            self.plugins.setup(self.generator, self.critic, shape, torch.device(device))
            self.plugins.guard.watch()  # nothing more: `unchanged` and `post-step` look themselves
        self.average: Average | None = None

    def take(self, index: int, count: int, average: Average) -> None:
        """Go on with a part of the batch, as one of several processes does."""
        size = len(self.real) // count
        part = slice(index * size, (index + 1) * size)
        self.real, self.latents, self.average = self.real[part], self.latents[part], average
        self.randomness.index = index

    def parameters(self, hook: str) -> list[nn.Parameter]:
        """Return the parameters that the answer to a hook trains."""
        return list(getattr(self, ANSWERS[hook]).parameters())

    def step(self, hook: str, update: int = 0) -> CriticStep | GeneratorStep:
        """Return the step of an update."""
        if ANSWERS[hook] == "critic":
            with torch.no_grad():
                fake = self.generator(self.latents).to(self.real.dtype)
            return CriticStep(
                self.critic,
                self.real,
                fake,
                update=update,
                average=self.average,
                randomness=self.randomness,
            )
        latents = self.latents.detach().requires_grad_()
        fake = self.generator(latents).to(self.real.dtype)
        return GeneratorStep(
            self.generator,
            self.critic,
            self.real,
            fake,
            latents=latents,
            update=update,
            average=self.average,
            randomness=self.randomness,
        )

    def answer(self, hook: str, step: CriticStep | GeneratorStep) -> Any:
        """Return what the subject answers, or None where it is not asked or has nothing."""
        if hook in LOSSES:
            return self.plugins.answer_loss(hook, step)
        for penalty, _, value in self.plugins.answer_penalties(hook, step):
            if penalty.instance is self.instance:
                return value
        return None

    def first(self, hook: str) -> tuple[int, Tensor]:
        """Return the subject's first answer to a hook, and its update.

        Raises CheckFailed when there is none.
        """
        for update in range(UPDATES):
            value = self.answer(hook, self.step(hook, update))
            if value is not None:
                if not isinstance(value, Tensor):
                    raise CheckFailed(f"{hook} answered {value!r}, expected a scalar tensor")
                return update, value
        raise CheckFailed(f"{hook} answered None in {UPDATES} updates: it never penalizes")

    def value(self, hook: str) -> Tensor:
        """Return the subject's first answer to a hook."""
        return self.first(hook)[1]

    def gradients(self, hook: str) -> tuple[Tensor, list[Tensor]]:
        """Return the first answer and its gradients by the parameters that it trains."""
        value = self.value(hook)
        return value, differentiate(value, self.parameters(hook))


def differentiate(value: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return the gradients of a scalar, zeros where it does not depend on a parameter."""
    if not value.requires_grad:
        raise CheckFailed("the value has no graph: it is a constant, and trains nothing")
    return list(
        torch.autograd.grad(value.sum(), parameters, retain_graph=True, materialize_grads=True)
    )
