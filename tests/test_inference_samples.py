"""Samples made in torch.inference_mode, which can't require grad themselves."""

import torch

from gancore import CriticStep
from gancore.step import input_gradient


def test_samples_made_in_inference_mode_have_input_gradients() -> None:
    with torch.inference_mode():
        x = torch.ones(3, 2)

    def critic(samples: torch.Tensor) -> torch.Tensor:
        return samples.square().sum(1)

    step = CriticStep(critic, x, x)
    for gradient in (input_gradient(critic, x), step.input_gradient(step.fake)):
        assert torch.equal(gradient, torch.full((3, 2), 2.0))  # 2x
    assert x.is_inference()
    assert not x.requires_grad
