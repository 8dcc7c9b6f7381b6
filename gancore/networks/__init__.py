"""Built-in generators and critics, each built as ``Network(shape, *, option=default, ...)``.

``shape`` is the shape of one sample. A generator maps latents (B, latent) to samples (B, *shape);
a critic maps samples (B, *shape) to unbounded scores (B,), each sample on its own.
"""

from gancore.networks.dcgan import DCGANCritic, DCGANGenerator
from gancore.networks.mlp import MLPCritic, MLPGenerator
from gancore.networks.r3gan import R3GANCritic, R3GANGenerator
from gancore.networks.resnet import ResNetCritic, ResNetGenerator
from gancore.networks.wgan_critic import WGANCritic

__all__ = [
    "DCGANCritic",
    "DCGANGenerator",
    "MLPCritic",
    "MLPGenerator",
    "R3GANCritic",
    "R3GANGenerator",
    "ResNetCritic",
    "ResNetGenerator",
    "WGANCritic",
]
