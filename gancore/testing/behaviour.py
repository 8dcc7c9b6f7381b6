"""Checks of what plugins do beside answering: to the critic, to penalties, with records."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gancore.files.stored import Json
from gancore.testing.check import check
from gancore.testing.scene import CheckFailed, Scene, Subject


@check("state")
def _state(subject: Subject) -> str:
    """What it remembers is in state_dict: a copy that loads it goes on in the same way."""
    scene = Scene(subject)
    for update in range(3):
        _live(scene, update)
    state = _state_of(scene)
    other = Scene(subject, build=1)
    other.critic.load_state_dict(scene.critic.state_dict())
    if state is not None:
        other.plugins.load_state_dict({subject.name: state})
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


@check("setup", "setup")
def _setup(subject: Subject) -> str:
    """It leaves the networks as they were, and makes the same of the same seed, for each shape."""
    for shape in subject.shapes:
        before, one, other = (
            Scene(subject, shape=shape, ready=ready, build=build)
            for ready, build in ((False, 0), (True, 0), (True, 1))
        )
        for name in ("generator", "critic"):
            after = getattr(one, name).state_dict()
            for key, tensor in getattr(before, name).state_dict().items():
                if key not in after or not torch.equal(after[key], tensor):
                    raise CheckFailed(f"it changed {key} of the {name}")
        theirs = _tensors(other)
        for key, tensor in _tensors(one).items():
            if not torch.equal(tensor, theirs[key]):
                raise CheckFailed(
                    f"{key} was another when other numbers had been drawn before: draw from the "
                    "global generators of torch, NumPy and Python, in setup and not in __init__"
                )
    return ", ".join(str(shape) for shape in subject.shapes)


def _tensors(scene: Scene) -> dict[str, Tensor]:
    """Return what a checkpoint has of the subject, of it the tensors."""
    state = _state_of(scene) or {}
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


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
    scales = [scene.plugins.scale(scene.companion, update) for update in range(64)]
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


def _live(scene: Scene, update: int) -> list[Any]:
    """Let one update happen; return what the subject answered."""
    answers: list[Any] = []
    for hook in scene.subject.answers:
        value = scene.answer(hook, scene.step(hook, update))
        answers.append(value.item() if isinstance(value, Tensor) and value.numel() == 1 else value)
    if "penalty_scale" in scene.subject.hooks:
        answers.append(scene.plugins.scale(scene.companion, update))
    with torch.no_grad():
        scene.plugins.call("post_step", critic=scene.critic, update=update)
    return answers


def _state_of(scene: Scene) -> Mapping[str, Tensor | Json] | None:
    """Return a copy of what a checkpoint holds of the subject, or None for nothing.

    Raises CheckFailed for what no checkpoint can hold.
    """
    has = [hasattr(scene.instance, name) for name in ("state_dict", "load_state_dict")]
    if any(has) and not all(has):
        raise CheckFailed("it has one of state_dict and load_state_dict: both or neither")
    state = copy.deepcopy(scene.plugins.state_dict()).get(scene.subject.name)
    for key, value in (state or {}).items():
        if not (value is None or isinstance(value, Tensor | bool | int | float | str)):
            raise CheckFailed(
                f"state {key!r} is a {type(value).__name__}, expected a tensor or JSON scalar"
            )
    return state
