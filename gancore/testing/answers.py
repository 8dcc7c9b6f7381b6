"""Checks of every plugin, and of those that answer a scalar: penalties and losses."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from itertools import product

import torch
from torch import Tensor

from gancore.hooks import hookimpl
from gancore.options import parameters
from gancore.plugins import Loaded, plugin
from gancore.step import CriticStep, GeneratorStep
from gancore.testing.check import check
from gancore.testing.devices import OneDevice
from gancore.testing.gradients import apart, difference, direction, inner, norm
from gancore.testing.scene import ANSWERS, PENALTIES, CheckFailed, Scene, Subject, differentiate
from gancore.testing.split import split_gradients
from gancore.training.objective import objective

BUILT_IN_LOSSES = ("wasserstein", "hinge", "nonsaturating", "rpgan")


@check("options")
def _options(subject: Subject) -> str:
    """Each option has a type and a default, and stands in the class docstring."""
    known = parameters(subject.cls)
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
    details = []
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
        details.append(f"{value.item():.4g}")
    return ", ".join(details)


@check("gradient", *ANSWERS)
def _gradient(subject: Subject) -> str:
    """The network that it trains receives a gradient that is not zero, the other one none."""
    details = []
    for hook in subject.answers:
        scene = Scene(subject)
        value, gradients = scene.gradients(hook)
        size = norm(gradients)
        if not math.isfinite(size) or size == 0:
            raise CheckFailed(f"the gradient of {hook} by the {ANSWERS[hook]} is {size}")
        if ANSWERS[hook] == "critic":
            other = norm(differentiate(value, list(scene.generator.parameters())))
            if other:
                raise CheckFailed(f"{hook} trains the generator too: a gradient of {other:.3g}")
        details.append(f"norm {size:.3g}")
    return ", ".join(details)


@check("finite-differences", *ANSWERS)
def _finite_differences(subject: Subject) -> str:
    """Its gradient is that of central differences, in float64, along random directions."""
    worst = 0.0
    for hook in subject.answers:
        gradients = Scene(subject).gradients(hook)[1]
        for number in range(3):
            ours = inner(gradients, direction(gradients, number))
            theirs = difference(subject, hook, number)
            error = abs(ours - theirs) / max(norm(gradients), 1e-12)
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


def _samples_of(step: CriticStep | GeneratorStep) -> list[tuple[str, Tensor]]:
    """Return the tensors that a step was given, by name."""
    return [(name, value) for name, value in vars(step).items() if isinstance(value, Tensor)]


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
    batches = (subject.batch, subject.group)
    for hook, shape, batch in product(subject.answers, subject.shapes, batches):
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
    shapes = ", ".join(f"(B, {', '.join(map(str, shape))})" for shape in subject.shapes)
    return f"{shapes}; B = {', '.join(map(str, batches))}"


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
        away = apart(halves, whole) / (norm(whole) or 1.0)
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
            value, gradients = Scene(subject, constant=True).gradients(hook)
            if not math.isfinite(value.item()) or not math.isfinite(norm(gradients)):
                raise CheckFailed(
                    f"{hook} is {value.item():.4g} there and its gradient {norm(gradients):.4g}: "
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
            if not (math.isfinite(value.item()) and math.isfinite(norm(gradients))):
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


@check("notes", *ANSWERS)
def _notes(subject: Subject) -> str:
    """The numbers that it notes are finite."""
    names = []
    for hook in subject.answers:
        scene = Scene(subject)
        for update in range(2):
            step = scene.step(hook, update)
            scene.answer(hook, step)
            for name, value in step.notes.items():
                if not math.isfinite(value.item()):
                    raise CheckFailed(f"{hook} noted {value.item()} as {name}")
            names += [name.rpartition("/")[2] for name in step.notes]
    return ", ".join(dict.fromkeys(names)) or "none"


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
    for hook in subject.penalties:
        first = Scene(subject).first(hook)[0]
        lazy = Loaded("every", _Every(due=first))
        eager = _extra_gradient(Scene(subject), hook, first)
        due = _extra_gradient(Scene(subject, others=(lazy,)), hook, first)
        if eager is None or due is None:
            raise CheckFailed(f"{hook} did not answer on an update that is due")
        if _extra_gradient(Scene(subject, others=(lazy,)), hook, first + 1) is not None:
            raise CheckFailed(f"{hook} was asked on an update between")
        four = [4 * gradient for gradient in eager]
        if apart(due, four) > 1e-9 * norm(four):
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
    for hook, loss in product(subject.penalties, BUILT_IN_LOSSES):
        scene = Scene(subject, loss=loss)
        parts = objective(scene.plugins, scene.step(hook), nullcontext())
        size = norm(differentiate(parts.total, scene.parameters(hook)))
        if not math.isfinite(size):
            raise CheckFailed(f"beside {loss}, the gradient of the total is {size}")
    return ", ".join(BUILT_IN_LOSSES)
