"""The contract of a plugin, as named checks. Which apply follows from the hooks it implements."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gancore import options
from gancore.hooks import hookimpl
from gancore.plugins import Loaded, plugin
from gancore.step import CriticStep, GeneratorStep
from gancore.testing.check import CHECKS, Result, check
from gancore.testing.devices import OneDevice
from gancore.testing.scene import (
    ANSWERS,
    PENALTIES,
    CheckFailed,
    ConstantCritic,
    Scene,
    Subject,
    differentiate,
)
from gancore.testing.split import split_gradients
from gancore.training.objective import objective

SHAPES = ((5,), (1, 8, 8), (3, 32, 32))
BUILT_IN_LOSSES = ("wasserstein", "hinge", "nonsaturating", "rpgan")


def check_plugin(subject: Subject) -> list[Result]:
    """Run every check that applies to a plugin.

    A class may declare checks inapplicable, with a reason that is reported:
    `inapplicable: ClassVar[dict[str, str]] = {"shapes": "flips need images"}`.
    """
    return [each.run(subject) for each in CHECKS if each.applies(subject)]


@check("options")
def _options(subject: Subject) -> str:
    """Each option has a type and a default, and stands in the class docstring."""
    known = options.parameters(subject.cls)
    text = subject.cls.__doc__ or ""
    for name, parameter in known.items():
        if parameter.default is parameter.empty:
            raise CheckFailed(f"option {name!r} has no default")
        if name not in text:
            raise CheckFailed(f"option {name!r} is not in the docstring of {subject.cls.__name__}")
    if not text.strip() or text.startswith(f"{subject.cls.__name__}("):
        raise CheckFailed(f"{subject.cls.__name__} has no docstring")
    return ", ".join(known) or "no options"


@check("registers")
def _registers(subject: Subject) -> str:
    """It registers with the core, beside a loss and another penalty."""
    Scene(subject)
    return ", ".join(subject.hooks) or "wrappers only"


@check("scalar", *ANSWERS)
def _scalar(subject: Subject) -> str:
    """The answer is a finite scalar with the dtype and device of the samples."""
    found = []
    for hook in subject.answers:
        scene = Scene(subject, dtype=torch.float32)
        value = scene.value(hook)
        if value.dim() != 0:
            raise CheckFailed(f"{hook} answered shape {tuple(value.shape)}, expected a scalar")
        if (value.dtype, value.device) != (scene.real.dtype, scene.real.device):
            raise CheckFailed(
                f"{hook} answered {value.dtype} on {value.device}, expected "
                f"{scene.real.dtype} on {scene.real.device}"
            )
        if not math.isfinite(value.item()):
            raise CheckFailed(f"{hook} answered {value.item()}")
        found.append(f"{value.item():.4g}")
    return ", ".join(found)


@check("gradient", *ANSWERS)
def _gradient(subject: Subject) -> str:
    """The network that it trains receives a gradient that is not zero, the other one none."""
    found = []
    for hook in subject.answers:
        scene = Scene(subject)
        value, gradients = scene.gradients(hook)
        norm = _norm(gradients)
        if not math.isfinite(norm) or norm == 0:
            raise CheckFailed(f"the gradient of {hook} by the {ANSWERS[hook]} is {norm}")
        if ANSWERS[hook] == "critic":
            other = _norm(differentiate(value, list(scene.generator.parameters())))
            if other:
                raise CheckFailed(f"{hook} trains the generator too: a gradient of {other:.3g}")
        found.append(f"norm {norm:.3g}")
    return ", ".join(found)


@check("finite-differences", *ANSWERS)
def _finite_differences(subject: Subject) -> str:
    """Its gradient is that of central differences, in float64, along random directions."""
    worst = 0.0
    for hook in subject.answers:
        gradients = Scene(subject).gradients(hook)[1]
        for direction in range(3):
            ours = _inner(gradients, _direction(gradients, direction))
            theirs = _difference(subject, hook, direction)
            error = abs(ours - theirs) / max(_norm(gradients), 1e-12)
            if not error < 1e-5:
                raise CheckFailed(
                    f"along a direction the gradient of {hook} is {ours:.6g}, but the value "
                    f"changes by {theirs:.6g}: is something detached?"
                )
            worst = max(worst, error)
    return f"largest error {worst:.1e} of the gradient's norm"


@check("unchanged", *ANSWERS)
def _unchanged(subject: Subject) -> str:
    """Samples, weights, gradients, modes and settings are afterwards as they were."""
    for hook in subject.answers:
        scene = Scene(subject)
        step = scene.step(hook)
        before = [(name, x, x.detach().clone()) for name, x in _samples_of(step)]
        networks = {"critic": scene.critic, "generator": scene.generator}
        states = {name: copy.deepcopy(module.state_dict()) for name, module in networks.items()}
        scene.plugins.guard.watch(**networks)
        scene.answer(hook, step)
        for name, x, copied in before:  # the guard goes by versions, and does not see all writes
            if not torch.equal(x, copied):
                raise CheckFailed(f"{hook} changed step.{name}")
            if x.is_leaf and x.grad is not None:
                raise CheckFailed(f"{hook} left a gradient on step.{name}")
        for name, module in networks.items():
            for key, tensor in module.state_dict().items():
                if not torch.equal(tensor, states[name][key]):
                    raise CheckFailed(f"{hook} changed {key} of the {name}")
            if any(p.grad is not None for p in module.parameters()):
                raise CheckFailed(f"{hook} left gradients on the {name}: use torch.autograd.grad")
    return "samples, weights, gradients, modes"


@check("seed", *ANSWERS)
def _seed(subject: Subject) -> str:
    """The same seed gives the same value, whatever was drawn before the plugin was made."""
    for hook in subject.answers:
        one, same, other = (Scene(subject, build=n).value(hook).item() for n in (0, 0, 1))
        if one != same and not (math.isnan(one) and math.isnan(same)):
            raise CheckFailed(
                f"{hook} answered {one!r}, then {same!r}: draw with step.rand and step.randn, or "
                "from the global generators of torch, NumPy and Python only"
            )
        if one != other and not (math.isnan(one) and math.isnan(other)):
            raise CheckFailed(
                f"{hook} answered {one!r}, and {other!r} when other numbers had been drawn before "
                "the plugin was made: it draws in its constructor; do that in a hook"
            )
    return "equal to the last bit"


@check("shapes", *ANSWERS)
def _shapes(subject: Subject) -> str:
    """It works on vectors, grey and colour images, and a batch of one."""
    for hook in subject.answers:
        for shape in SHAPES:
            for batch in (8, 1):
                try:
                    value = Scene(subject, shape=shape, batch=batch).value(hook)
                except CheckFailed:
                    raise
                except Exception as error:
                    raise CheckFailed(
                        f"{hook} on samples ({batch}, {', '.join(map(str, shape))}) raised "
                        f"{type(error).__name__}: {error}"
                    ) from error
                if not bool(value.isfinite().all()):
                    raise CheckFailed(f"{hook} is {value} on samples {(batch, *shape)}")
    return ", ".join(f"(B, {', '.join(map(str, shape))})" for shape in SHAPES) + "; B = 8, 1"


@check("split", *ANSWERS)
def _split(subject: Subject) -> str:
    """Two processes, each with half of the batch, find the gradients of one with all of it."""
    worst = 0.0
    for hook in subject.answers:
        value, whole = Scene(subject).gradients(hook)
        if not torch.equal(value, Scene(subject, process=1).value(hook)):
            return (
                f"not told: {hook} draws from a global generator, which gives each process numbers "
                "of its own; step.rand and step.randn give the same to any number of processes"
            )
        halves = split_gradients(subject, hook)
        away = _norm([one - other for one, other in zip(halves, whole, strict=True)])
        away /= _norm(whole) or 1.0
        worst = max(worst, away)
        if not away < 1e-9:
            raise CheckFailed(
                f"{hook} has gradients {away:.2g} of their norm away: what is made of the batch "
                "as a whole (a moving average, a standard deviation) goes through step.averaged"
            )
    return f"{worst:.1e} apart"


@check("constant-critic", "penalty", "critic_loss")
def _constant_critic(subject: Subject) -> str:
    """Value and gradients are finite at a critic with a zero gradient."""
    for hook in subject.answers:
        if ANSWERS[hook] == "critic":
            value, gradients = Scene(subject, critic=ConstantCritic).gradients(hook)
            if not math.isfinite(value.item()) or not math.isfinite(_norm(gradients)):
                raise CheckFailed(
                    f"{hook} is {value.item():.4g} there and its gradient {_norm(gradients):.4g}: "
                    "the root of a sum of squares has an infinite derivative at 0, "
                    "torch.linalg.vector_norm has not"
                )
    return "finite"


@check("precision", *ANSWERS)
def _precision(subject: Subject) -> str:
    """It works in float64, in float32, and under bf16 autocast."""
    settings = (
        ("float64", torch.float64, False),
        ("float32", torch.float32, False),
        ("bf16 autocast", torch.float32, True),
    )
    for hook in subject.answers:
        for name, dtype, autocast in settings:
            scene = Scene(subject, dtype=dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                value, gradients = scene.gradients(hook)
            if value.dtype != dtype:
                raise CheckFailed(f"{hook} answered {value.dtype} under {name}, expected {dtype}")
            if not (math.isfinite(value.item()) and math.isfinite(_norm(gradients))):
                raise CheckFailed(f"{hook} or its gradient is not finite under {name}")
    return "float64, float32, bf16 autocast"


@check("device", *ANSWERS)
def _device(subject: Subject) -> str:
    """It makes its tensors on the device of the samples: nothing is left on the CPU."""
    for hook in subject.answers:
        scene = Scene(subject, device="meta", dtype=torch.float32)
        step = scene.step(hook)
        with OneDevice():  # type: ignore[no-untyped-call]
            value = scene.answer(hook, step)
        if isinstance(value, Tensor) and value.device.type != "meta":
            raise CheckFailed(
                f"{hook} answered a tensor on {value.device}, the samples are on meta"
            )
    return "follows the samples"


@plugin
class _Every:
    """Makes all penalties lazy, due at one update of every `interval`."""

    interval: int = 4
    due: int = 0

    @hookimpl
    def penalty_scale(self, update: int) -> float:
        """Answer the interval on due updates, 0 on others."""
        return float(self.interval) if (update - self.due) % self.interval == 0 else 0.0


@check("lazy", *PENALTIES)
def _lazy(subject: Subject) -> str:
    """Made lazy, it counts N times on due updates and not at all between."""
    for hook in (each for each in subject.answers if each in PENALTIES):
        first = Scene(subject).first(hook)[0]
        lazy = Loaded("every", _Every(due=first))
        eager = _extra_gradient(Scene(subject), hook, first)
        due = _extra_gradient(Scene(subject, others=(lazy,)), hook, first)
        if eager is None or due is None:
            raise CheckFailed(f"{hook} did not answer on an update that is due")
        if _extra_gradient(Scene(subject, others=(lazy,)), hook, first + 1) is not None:
            raise CheckFailed(f"{hook} was asked on an update between")
        four = [4 * each for each in eager]
        if _norm([a - b for a, b in zip(due, four, strict=True)]) > 1e-9 * _norm(four):
            raise CheckFailed("every 4th update, its gradient is not 4 times the eager one")
    return "N times on due updates, nothing between"


def _extra_gradient(scene: Scene, hook: str, update: int) -> list[Tensor] | None:
    """Return what the penalties of an update add to the loss's gradient; None without ours."""
    parts = objective(scene.plugins, scene.step(hook, update), nullcontext())
    if f"{hook}/{scene.subject.name}" not in parts.terms:
        return None
    parameters = scene.parameters(hook)
    total = differentiate(parts.total, parameters)
    loss = differentiate(parts.terms[f"{ANSWERS[hook]}_loss"], parameters)
    return [a - b for a, b in zip(total, loss, strict=True)]


@check("losses", *PENALTIES)
def _losses(subject: Subject) -> str:
    """It works beside every built-in loss."""
    for hook in (each for each in subject.answers if each in PENALTIES):
        for loss in BUILT_IN_LOSSES:
            scene = Scene(subject, loss=loss)
            parts = objective(scene.plugins, scene.step(hook), nullcontext())
            norm = _norm(differentiate(parts.total, scene.parameters(hook)))
            if not math.isfinite(norm):
                raise CheckFailed(f"beside {loss}, the gradient of the total is {norm}")
    return ", ".join(BUILT_IN_LOSSES)


@check("state")
def _state(subject: Subject) -> str:
    """What it remembers is in state_dict: a copy that loads it goes on in the same way."""
    scene = Scene(subject)
    for update in range(3):
        _live(scene, update)
    state = _state_of(scene.instance)
    other = Scene(subject, build=1)
    other.critic.load_state_dict(scene.critic.state_dict())
    if state is not None:
        _flat(state)
        other.instance.load_state_dict(state)
    for update in range(3, 6):
        one, two = _live(scene, update), _live(other, update)
        if one != two:
            remedy = "it is incomplete" if state is not None else "give the class one"
            raise CheckFailed(
                f"after three updates it answers {one}, and a new one {two}: it remembers "
                f"something, or drew it when it was made, that its state_dict does not tell; "
                f"{remedy}"
            )
    return "none" if state is None else ", ".join(state) or "empty"


@check("prepared-critic", "prepare_critic")
def _prepared_critic(subject: Subject) -> str:
    """The critic it changes still scores, trains, saves, and is the same for a whole update."""
    scene = Scene(subject)
    if not all(p.is_leaf and p.requires_grad for p in scene.critic.parameters()):
        raise CheckFailed("a parameter of the critic is no leaf, or does not require grad")
    scene.critic.train()
    first, second = scene.critic(scene.real), scene.critic(scene.real)
    if not torch.equal(first, second):
        raise CheckFailed(
            "two calls within one update score the same samples differently: "
            "change weights in post_step only"
        )
    saved = copy.deepcopy(scene.critic.state_dict())
    other = Scene(subject)
    with torch.no_grad():
        for parameter in other.critic.parameters():
            parameter.mul_(1.5)
    other.critic.load_state_dict(saved)
    if not torch.equal(other.critic(scene.real), first):
        raise CheckFailed("the critic's state_dict does not bring its scores back")
    return "the same scores all through an update, and from its state_dict"


@check("post-step", "post_step")
def _post_step(subject: Subject) -> str:
    """It keeps the critic's parameters the same objects, finite, trainable, in their dtype."""
    scene = Scene(subject)
    scene.plugins.guard.watch(critic=scene.critic, generator=scene.generator)
    for update in range(3):
        with torch.no_grad():
            scene.plugins.call("post_step", critic=scene.critic, update=update)
    if not all(bool(parameter.isfinite().all()) for parameter in scene.critic.parameters()):
        raise CheckFailed("a parameter is inf or nan afterwards")
    return "parameters in place, finite"


@check("scale", "penalty_scale")
def _scale(subject: Subject) -> str:
    """It answers None or a finite number that is not negative, at any update."""
    scene = Scene(subject)
    companion = next(each for each in scene.plugins.loaded if each.name == "companion")
    scales = [scene.plugins.scale(companion, update) for update in range(64)]
    if min(scales) < 0:
        raise CheckFailed(f"it answered {min(scales)}: a penalty would become a reward")
    return f"mean {sum(scales) / len(scales):.3g} over 64 updates"


@check("records", "log", "sample")
def _records(subject: Subject) -> str:
    """It takes records and samples, and leaves them as they were."""
    scene = Scene(subject)
    scene.plugins.call("start", folder=Path(), step=0)
    record = {"update": 5, "step": 1, "seconds": 0.5, "critic_loss": 1.0, "penalty/x": 2.0}
    scene.plugins.call("log", record=record)
    for samples in (torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8), torch.rand(4, 2)):
        kept = samples.clone()
        scene.plugins.call("sample", samples=samples, step=1)
        if not torch.equal(samples, kept):
            raise CheckFailed("it changed the samples, which others see after it")
    return "takes records, images and points"


def _samples_of(step: CriticStep | GeneratorStep) -> list[tuple[str, Tensor]]:
    """Return the tensors that a step was given, by name."""
    return [(name, value) for name, value in vars(step).items() if isinstance(value, Tensor)]


def _live(scene: Scene, update: int) -> list[Any]:
    """Let one update happen; return what the subject answered."""
    answers: list[Any] = []
    for hook in scene.subject.answers:
        value = scene.answer(hook, scene.step(hook, update))
        answers.append(value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)
    if "penalty_scale" in scene.subject.hooks:
        companion = next(each for each in scene.plugins.loaded if each.name == "companion")
        answers.append(scene.plugins.scale(companion, update))
    with torch.no_grad():
        scene.plugins.call("post_step", critic=scene.critic, update=update)
    return answers


def _state_of(instance: Any) -> dict[str, Any] | None:
    has = [hasattr(instance, name) for name in ("state_dict", "load_state_dict")]
    if any(has) and not all(has):
        raise CheckFailed("it has one of state_dict and load_state_dict: both or neither")
    return copy.deepcopy(dict(instance.state_dict())) if all(has) else None


def _flat(state: Mapping[str, Any]) -> None:
    for key, value in state.items():
        if not (value is None or isinstance(value, Tensor | bool | int | float | str)):
            raise CheckFailed(
                f"state {key!r} is a {type(value).__name__}, expected a tensor or JSON scalar"
            )


def _difference(subject: Subject, hook: str, number: int, epsilon: float = 1e-6) -> float:
    values = []
    for sign in (1, -1):
        scene = Scene(subject)
        parameters = scene.parameters(hook)
        with torch.no_grad():
            for parameter, part in zip(parameters, _direction(parameters, number), strict=True):
                parameter.add_(part, alpha=sign * epsilon)
        values.append(scene.value(hook).item())
    return (values[0] - values[1]) / (2 * epsilon)


def _direction(like: Iterable[Tensor], number: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in like]


def _inner(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    return float(sum((a * b).detach().sum() for a, b in zip(one, other, strict=True)))


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(float(sum(each.detach().double().square().sum() for each in tensors)))
