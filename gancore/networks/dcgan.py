"""Convolutional generator and critic after DCGAN, for square images of 8 to 64 pixels."""

from itertools import pairwise

from torch import Tensor, nn

from gancore.networks.parts import Channels, Latent, Norm, norm_layer, square_image

SIZES = (8, 16, 32, 64)


class DCGANGenerator(nn.Module):
    """Map latents (B, latent) to images (B, C, S, S) in (-1, 1), S one of 8, 16, 32, 64.

    Radford et al. 2016 (Unsupervised Representation Learning with Deep Convolutional Generative
    Adversarial Networks): a transposed convolution to 4x4 maps, then 4x4 transposed convolutions
    of stride 2, batch norm and ReLU after each but the last, which ends in tanh. At size 64 the
    default width gives the 512, 256, 128 and 64 maps of the PyTorch DCGAN example.

    The paper draws all weights from N(0, 0.02); the example draws the convolutions' so and the
    batch norm gains from N(1, 0.02), and has no convolution biases. This class does as the example.

    Options:
        latent: numbers in one latent vector.
        width: channels of the last hidden maps; they double with each step towards the 4x4 maps.

    Parameters for shape (1, 8, 8) at the defaults: 66,688.
    """

    def __init__(
        self, shape: tuple[int, ...], *, latent: Latent = 64, width: Channels = 64
    ) -> None:
        super().__init__()
        channels, size = square_image("DCGANGenerator", shape, SIZES)
        self.latent = latent
        doublings = (size // 8).bit_length() - 1
        widths = [width << step for step in range(doublings, -1, -1)]
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent, widths[0], 4, 1, 0, bias=False)]
        for maps, following in pairwise([*widths, channels]):
            layers += [nn.BatchNorm2d(maps), nn.ReLU()]
            layers.append(nn.ConvTranspose2d(maps, following, 4, 2, 1, bias=False))
        self.layers = nn.Sequential(*layers, nn.Tanh())
        for layer in layers:
            if isinstance(layer, nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)

    def forward(self, z: Tensor) -> Tensor:
        """Return images (B, C, S, S) for latents (B, latent)."""
        images: Tensor = self.layers(z[:, :, None, None])
        return images


class DCGANCritic(nn.Module):
    """Map images (B, C, S, S) to scores (B,), S one of 8, 16, 32, 64.

    The discriminator of Radford et al. 2016 without batch norm and final sigmoid: 4x4 convolutions
    of stride 2 with LeakyReLU(0.2) and doubling channels, a norm after each but the first, then a
    convolution over the whole of the last maps. These are 4x4, or 2x2 for 8x8 images so that there
    are two strided convolutions, hence a norm, at every size.

    Initialization is PyTorch's default: from the paper's N(0, 0.02) a critic without norm starts
    with input gradients more than ten times smaller on 8x8 images.

    Options:
        width: channels after the first convolution.
        norm: one of "layer" over (C, H, W), "instance" with gain and shift, "group" of at most 8
            groups, and "none".

    Parameters for shape (1, 8, 8) at the defaults: 34,145.
    """

    def __init__(
        self, shape: tuple[int, ...], *, width: Channels = 32, norm: Norm = "layer"
    ) -> None:
        super().__init__()
        channels, size = square_image("DCGANCritic", shape, SIZES)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        maps, size = width, size // 2
        while size > 4 or maps == width:
            layers.append(nn.Conv2d(maps, 2 * maps, 4, 2, 1))
            maps, size = 2 * maps, size // 2
            layers += [norm_layer(norm, maps, size), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(maps, 1, size), nn.Flatten(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return scores (B,) for images (B, C, S, S)."""
        scores: Tensor = self.layers(x)
        return scores
