"""The costs that the plugins' READMEs state, against PyTorch's own FLOP counter."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from helpers import ROOT
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gancore import CriticStep
from gancore.checks.dependence import unprobed
from gancore.losses import Wasserstein
from gancore.plugins import Plugins, wrap
from gancore_cr import ConsistencyRegularization
from gancore_dragan import DRAGAN
from gancore_gp import GradientPenalty, gradient_penalty
from gancore_probe import Probe
from gancore_r1 import R1, r1_penalty
from gancore_r2 import R2, r2_penalty

WIDTH, SIDE = 128, 8


def critic(between: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Make a critic of so many equal layers that what the first and last differ in is little."""
    layers: list[nn.Module] = [nn.Conv2d(4, WIDTH, 3, padding=1)]
    for _ in range(7):
        layers += [between(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTH * SIDE**2, 1))


def passes(network: nn.Module, *penalties: object, function: Callable[..., Tensor] | None) -> int:
    """Return a critic update's FLOPs in units of a forward pass of half a batch."""
    real, fake = torch.randn(2, 2, 4, SIDE, SIDE)
    with FlopCounterMode(display=False) as unit, torch.no_grad():
        network(real)
    plugins = Plugins([wrap(Wasserstein()), *map(wrap, penalties)])
    with FlopCounterMode(display=False) as counts, unprobed():
        step = CriticStep(network, real, fake)
        answers = [value for _, _, value in plugins.answer_penalties("penalty", step)]
        total = sum(answers, plugins.answer_loss("critic_loss", step))
        if function is not None:
            total = total + function(network, real, fake)
        torch.autograd.grad(total, list(network.parameters()))
    return round(counts.get_total_flops() / unit.get_total_flops())


def card(name: str) -> str:
    text = (ROOT / "plugins" / f"gancore-{name}" / "README.md").read_text(encoding="utf-8")
    return text.split("## Cost\n")[1].split("\n## ")[0]


PENALTIES = {"gp": GradientPenalty(), "dragan": DRAGAN(), "r1": R1(), "r2": R2()}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gp": gradient_penalty,
    "r1": lambda critic, real, fake: r1_penalty(critic, real),
    "r2": lambda critic, real, fake: r2_penalty(critic, fake),
}


@pytest.mark.parametrize("name", [*PENALTIES, "cr"])
def test_an_update_with_a_penalty_costs_what_its_card_says(name: str) -> None:
    stated = [
        int(count)
        for count in re.findall(r"without penalty is (\d+)F.* this one (\d+)F", card(name))[0]
    ]
    penalty = PENALTIES.get(name, ConsistencyRegularization())
    counted = [passes(critic(), function=None), passes(critic(), penalty, function=None)]
    assert counted == stated


@pytest.mark.parametrize("name", ["gp", "dragan"])
def test_a_smooth_critic_costs_what_the_card_says(name: str) -> None:
    (stated,) = re.findall(r"smooth activations takes (\d+)F", card(name))
    assert passes(critic(nn.Tanh), PENALTIES[name], function=None) == int(stated)


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_functions_on_their_own_cost_what_the_card_says(name: str) -> None:
    (stated,) = re.findall(r"with it an update is (\d+)F, or (\d+)F", card(name))
    counted = [passes(critic(of), function=FUNCTIONS[name]) for of in (nn.ReLU, nn.Tanh)]
    assert counted == [int(count) for count in stated]
    assert passes(critic(), function=FUNCTIONS["gp"]) == 10


def test_a_look_of_the_probe_costs_what_its_card_says() -> None:
    (stated,) = re.findall(r"an update in which it looks takes (\d+)F more", card("probe"))
    assert passes(critic(), Probe(layers=False), function=None) - 6 == int(stated)


def test_what_laziness_saves_is_the_penaltys_share() -> None:
    ((whole, bare, more),) = re.findall(
        r"gradient penalty's (\d+)F .*? become (\d+)F \+ (\d+)F/N", card("lazy")
    )
    counted = passes(critic(), PENALTIES["gp"], function=None)
    assert (counted, 6, counted - 6) == (int(whole), int(bare), int(more))
