"""The four-convolution critic for 32x32 images."""

from torch import Tensor, nn

from gancore.networks.parts import Channels, square_image


class WGANCritic(nn.Module):
    """Map images (B, C, 32, 32) to scores (B,).

    The DCGAN discriminator (Radford et al. 2016) as a WGAN-GP critic: layer norm over (C, H, W) in
    place of batch norm, and no final sigmoid, as Gulrajani et al. 2017 (Improved Training of
    Wasserstein GANs) advise. Three 4x4 convolutions of stride 2 give f, 2f and 4f maps, each with
    LeakyReLU(0.2), the last two after a layer norm; a 4x4 convolution gives the score. PyTorch's
    default initialization.

    Options:
        feature_maps: f, the channels after the first convolution.

    Parameters for shape (3, 32, 32) at the defaults: 687,553.
    """

    def __init__(self, shape: tuple[int, ...], *, feature_maps: Channels = 64) -> None:
        super().__init__()
        channels, _ = square_image("WGANCritic", shape, (32,))
        f = feature_maps
        self.layers = nn.Sequential(
            nn.Conv2d(channels, f, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(f, 2 * f, 4, 2, 1),
            nn.LayerNorm([2 * f, 8, 8]),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * f, 4 * f, 4, 2, 1),
            nn.LayerNorm([4 * f, 4, 4]),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * f, 1, 4, 1, 0),
            nn.Flatten(0),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B,) for images (B, C, 32, 32)."""
        scores: Tensor = self.layers(x)
        return scores
