"""Losses: built-in plugins like any other, each with the generator's loss that belongs to it."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import relu, softplus

from gancore.hooks import hookimpl
from gancore.plugins import plugin
from gancore.step import CriticStep, GeneratorStep


@plugin
class Wasserstein:
    """E[D(fake)] − E[D(real)] (Arjovsky et al., 2017); the generator: −E[D(fake)].

    Its negative estimates the Wasserstein-1 distance when the critic is 1-Lipschitz, which a
    regularizer has to see to.
    """

    any_score: ClassVar[bool] = True  # it is for scores of any size: no sigmoid before it

    @hookimpl
    def critic_loss(self, step: CriticStep) -> Tensor:
        """E[D(fake)] − E[D(real)]."""
        return step.scores(step.fake).mean() - step.scores(step.real).mean()

    @hookimpl
    def generator_loss(self, step: GeneratorStep) -> Tensor:
        """−E[D(fake)]."""
        return -step.scores(step.fake).mean()


@plugin
class Hinge:
    """E[max(0, 1 − D(real))] + E[max(0, 1 + D(fake))] (Lim & Ye, 2017; Miyato et al., 2018).

    The generator: −E[D(fake)].
    """

    any_score: ClassVar[bool] = True

    @hookimpl
    def critic_loss(self, step: CriticStep) -> Tensor:
        """E[max(0, 1 − D(real))] + E[max(0, 1 + D(fake))]."""
        return relu(1 - step.scores(step.real)).mean() + relu(1 + step.scores(step.fake)).mean()

    @hookimpl
    def generator_loss(self, step: GeneratorStep) -> Tensor:
        """−E[D(fake)]."""
        return -step.scores(step.fake).mean()


@plugin
class NonSaturating:
    """E[softplus(−D(real))] + E[softplus(D(fake))] (Goodfellow et al., 2014).

    The generator: E[softplus(−D(fake))], the paper's non-saturating form.
    """

    any_score: ClassVar[bool] = True

    @hookimpl
    def critic_loss(self, step: CriticStep) -> Tensor:
        """E[softplus(−D(real))] + E[softplus(D(fake))]."""
        return softplus(-step.scores(step.real)).mean() + softplus(step.scores(step.fake)).mean()

    @hookimpl
    def generator_loss(self, step: GeneratorStep) -> Tensor:
        """E[softplus(−D(fake))]."""
        return softplus(-step.scores(step.fake)).mean()


@plugin
class RpGAN:
    """E[softplus(D(fake) − D(real))], samples paired (Jolicoeur-Martineau, 2018; R3GAN, 2024).

    The generator: E[softplus(D(real) − D(fake))], with fresh real samples.
    """

    any_score: ClassVar[bool] = True

    @hookimpl
    def critic_loss(self, step: CriticStep) -> Tensor:
        """E[softplus(D(fake) − D(real))]."""
        return softplus(step.scores(step.fake) - step.scores(step.real)).mean()

    @hookimpl
    def generator_loss(self, step: GeneratorStep) -> Tensor:
        """E[softplus(D(real) − D(fake))]."""
        return softplus(step.scores(step.real) - step.scores(step.fake)).mean()
