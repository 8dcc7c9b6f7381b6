"""LeCam regularization.

Tseng et al., 2021, "Regularizing Generative Adversarial Networks under Limited Data".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from gancore import CriticStep, hookimpl, plugin
from gancore.step import refuse_unusable

__all__ = ["Anchors", "LeCam", "lecam_penalty"]


def lecam_penalty(
    real_scores: Tensor,
    fake_scores: Tensor,
    real_anchor: Tensor | float,
    fake_anchor: Tensor | float,
    *,
    weight: float = 0.3,
    relu: bool = False,
) -> Tensor:
    """Return weight·(E[(D(x) − α_F)²] + E[(D(G(z)) − α_R)²]).

    Tseng et al., 2021, equation 4: real scores are drawn to where fake ones have been, and fake
    ones to where real ones have been.

    real_scores  D(x), any shape
    fake_scores  D(G(z)), any shape
    real_anchor  α_R, a moving average of real scores, a scalar (`Anchors` keeps it)
    fake_anchor  α_F, one of fake scores
    weight       λ
    relu         only count real scores above α_F, and fake ones below α_R (the authors' code)

    Returns a scalar with the graph of the scores. Raises gancore.errors.ContractError for scores
    that are no floating-point tensor, or none.
    """
    refuse_unusable(0, real_scores=real_scores, fake_scores=fake_scores)
    above, below = real_scores - fake_anchor, real_anchor - fake_scores
    if relu:
        above, below = above.relu(), below.relu()
    return weight * (above.square().mean() + below.square().mean())


class Anchors:
    """Exponential moving averages of the critic's scores, with no bias towards a start value.

    After n updates with batch means m₁ … mₙ an anchor is Σᵢ decayⁿ⁻ⁱ·mᵢ / Σᵢ decayⁿ⁻ⁱ. All are
    scalar tensors without graph on the scores' device, which never has to be waited for.

    real, fake  α_R and α_F
    count       how many updates are in them, older ones counting less: Σᵢ decayⁿ⁻ⁱ
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        # three tensors, not one thrice: safetensors refuses shared memory
        self.real, self.fake, self.count = torch.zeros(()), torch.zeros(()), torch.zeros(())

    @torch.no_grad()
    def update(self, real_scores: Tensor, fake_scores: Tensor) -> None:
        """Take in the scores of a batch, of any shape. Raises as `lecam_penalty`."""
        refuse_unusable(0, real_scores=real_scores, fake_scores=fake_scores)
        real, fake = real_scores.mean(), fake_scores.mean()
        self.count = self.decay * self.count.to(real) + 1
        self.real = torch.lerp(self.real.to(real), real, 1 / self.count)
        self.fake = torch.lerp(self.fake.to(fake), fake, 1 / self.count)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that is remembered: three scalars."""
        return {"real": self.real, "fake": self.fake, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        self.real, self.fake, self.count = state["real"], state["fake"], state["count"]


@plugin
class LeCam:
    """weight·(E[(D(x) − α_F)²] + E[(D(G(z)) − α_R)²]) (Tseng et al., 2021).

    weight: λ.
    decay: how much of the moving averages α_R and α_F stays from one update to the next.
    warm_up: so many critic updates at the start only build the averages, and penalize nothing.
    relu: only count real scores above α_F, and fake ones below α_R, as the authors' code does.
    """

    weight: Annotated[float, Gt(0)] = 0.3
    decay: Annotated[float, Ge(0), Lt(1)] = 0.99
    warm_up: Annotated[int, Ge(0)] = 0
    relu: bool = False
    anchors: Anchors = field(init=False, repr=False)

    inapplicable: ClassVar[dict[str, str]] = {
        "finite-differences": "the averages take part in this update, and are constants to its "
        "gradient: differences at fixed averages are in the package's own tests"
    }

    def __post_init__(self) -> None:
        self.anchors = Anchors(self.decay)

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor | None:
        """Take in this update's scores, the loss's own; answer the penalty after the warm-up."""
        real, fake = step.scores(step.real), step.scores(step.fake)
        self.anchors.update(step.averaged(real.mean()), step.averaged(fake.mean()))
        if step.update < self.warm_up:
            return None
        return lecam_penalty(
            real,
            fake,
            self.anchors.real,
            self.anchors.fake,
            weight=self.weight,
            relu=self.relu,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages."""
        return self.anchors.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        self.anchors.load_state_dict(state)
