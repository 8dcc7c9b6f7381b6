"""The plan: which updates a step consists of."""

from __future__ import annotations

from typing import Literal, NamedTuple

from gancore.recipe import Settings

Side = Literal["critic", "generator"]


class Update(NamedTuple):
    """One update of one network.

    side    the network that is trained
    number  which of this network's updates it is, from 0
    """

    side: Side
    number: int


def plan(settings: Settings, step: int) -> tuple[Update, ...]:
    """Return the updates of a step (from 0), in order: `train.critic_steps` of the critic, then
    one of the generator (Goodfellow et al., 2014, Algorithm 1).

    It depends on nothing but its arguments, so a resumed run makes the same updates.
    """
    count = settings.train.critic_steps
    critic = (Update("critic", step * count + number) for number in range(count))
    return (*critic, Update("generator", step))
