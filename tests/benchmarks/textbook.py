"""Critic updates as tutorials have them: what people would run without gancore.

Penalties and losses as in the texts that this project grew from, line by line; the R3GAN update as
its paper's appendix has it. Nothing here is made faster, or slower, than it stands there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus


def log(*values: Tensor) -> list[float]:
    """Return numbers to print, one copy to the host each."""
    return [value.item() for value in values]


def gradient_penalty(
    D: nn.Module, real_data: Tensor, fake_data: Tensor, device: torch.device, lambda_gp: float
) -> Tensor:
    """WGAN-GP's."""
    batch_size = real_data.size(0)
    alpha = torch.rand(batch_size, *[1] * (real_data.dim() - 1), device=device)
    alpha = alpha.expand_as(real_data)
    interpolated = alpha * real_data + (1 - alpha) * fake_data
    interpolated.requires_grad_(True)
    d_interpolated = D(interpolated)
    gradients = torch.autograd.grad(
        outputs=d_interpolated,
        inputs=interpolated,
        grad_outputs=torch.ones_like(d_interpolated),
        create_graph=True,
        retain_graph=True,
    )[0]
    gradients = gradients.view(batch_size, -1)
    gradient_norm = gradients.norm(2, dim=1)
    penalty: Tensor = lambda_gp * ((gradient_norm - 1) ** 2).mean()
    return penalty


def zero_centered(D: nn.Module, samples: Tensor, gamma: float) -> Tensor:
    """R1 on real samples, R2 on fake ones."""
    samples.requires_grad_(True)
    d_output = D(samples)
    gradients = torch.autograd.grad(outputs=d_output.sum(), inputs=samples, create_graph=True)[0]
    penalty: Tensor = gamma / 2 * gradients.pow(2).flatten(1).sum(1).mean()
    return penalty


def wgan(D: nn.Module, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor) -> None:
    """Make an update without a regularizer."""
    optimizer.zero_grad()
    d_real = D(real)
    d_fake = D(fake)
    wasserstein_distance = d_real.mean() - d_fake.mean()
    loss = -wasserstein_distance
    log(wasserstein_distance, d_real.mean(), d_fake.mean())
    torch.autograd.backward(loss)
    optimizer.step()


def wgan_gp(
    D: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    fake: Tensor,
    lambda_gp: float = 10.0,
) -> None:
    """Make an update with the gradient penalty."""
    optimizer.zero_grad()
    d_real = D(real)
    d_fake = D(fake)
    wasserstein_distance = d_real.mean() - d_fake.mean()
    gp = gradient_penalty(D, real, fake, real.device, lambda_gp)
    loss = -wasserstein_distance + gp
    log(wasserstein_distance, gp, d_real.mean(), d_fake.mean())
    torch.autograd.backward(loss)
    optimizer.step()


def r1(
    D: nn.Module, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, gamma: float = 10.0
) -> None:
    """Make an update with R1, whose forward pass is its own."""
    optimizer.zero_grad()
    loss = softplus(-D(real)).mean() + softplus(D(fake)).mean()
    penalty = zero_centered(D, real, gamma)
    log(loss, penalty)
    torch.autograd.backward(loss + penalty)
    optimizer.step()


def r1_r2(
    D: nn.Module, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, gamma: float = 10.0
) -> None:
    """Make an update with R1 and R2, each with a forward pass of its own."""
    optimizer.zero_grad()
    loss = softplus(D(fake) - D(real)).mean()
    penalty = zero_centered(D, real, gamma) + zero_centered(D, fake, gamma)
    log(loss, penalty)
    torch.autograd.backward(loss + penalty)
    optimizer.step()


def r3gan(
    D: nn.Module, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor, gamma: float = 10.0
) -> None:
    """Make R3GAN's joint update: relativistic loss, R1 and R2 on its own forward passes."""
    optimizer.zero_grad()
    real = real.detach().requires_grad_(True)
    fake = fake.detach().requires_grad_(True)
    real_logits = D(real)
    fake_logits = D(fake)
    penalties = []
    for samples, logits in ((real, real_logits), (fake, fake_logits)):
        (gradient,) = torch.autograd.grad(outputs=logits.sum(), inputs=samples, create_graph=True)
        penalties.append(gradient.square().flatten(1).sum(1))
    adversarial = softplus(fake_logits - real_logits)
    loss = (adversarial + gamma / 2 * (penalties[0] + penalties[1])).mean()
    log(adversarial.mean(), *(each.mean() for each in penalties))
    torch.autograd.backward(loss)
    optimizer.step()


def hinge(D: nn.Module, optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor) -> None:
    """Make an update with the hinge loss: spectral norm, where it is on, iterates at each call."""
    optimizer.zero_grad()
    loss = relu(1 - D(real)).mean() + relu(1 + D(fake)).mean()
    log(loss)
    torch.autograd.backward(loss)
    optimizer.step()


def steps_of_wgan_gp(
    G: nn.Module,
    D: nn.Module,
    dataloader: Iterable[Sequence[Tensor]],
    latent_dim: int,
    *,
    n_critic: int = 5,
    lr: float = 1e-4,
) -> Iterator[None]:
    """Train as the tutorial's loop does: one real batch for all critic updates of a step.

    Yields after each step, endlessly.
    """
    g_optimizer = torch.optim.Adam(G.parameters(), lr=lr, betas=(0.0, 0.9))
    d_optimizer = torch.optim.Adam(D.parameters(), lr=lr, betas=(0.0, 0.9))
    while True:
        for real_data, *_ in dataloader:
            batch_size = real_data.size(0)
            for _ in range(n_critic):
                z = torch.randn(batch_size, latent_dim)
                fake_data = G(z).detach()
                wgan_gp(D, d_optimizer, real_data, fake_data)
            g_optimizer.zero_grad()
            z = torch.randn(batch_size, latent_dim)
            g_loss = -D(G(z)).mean()
            torch.autograd.backward(g_loss)
            g_optimizer.step()
            yield
