"""The localizer's network: from an overview in plain HU to a class for each voxel.

A residual 3D U-Net (Çiçek et al., 3D U-Net, MICCAI 2016; MONAI's `UNet`) that works on a cube of
half the size: blocks of voxels go in as channels and come out again as voxels (Shi et al., CVPR
2016, sub-pixel convolution), so that no voxel is lost and an eighth of the work is left.
"""

from typing import cast

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from storage_schemas.localizer_card import BACKGROUND, CLASSES
from training.localizer.config import LocalizerConfig

LOW_HU, HIGH_HU = -500.0, 1300.0
"""What the network sees: from fat and air, which show the neck's outline, to dense bone."""
BACKGROUND_LOGIT = 4.0
"""Of a new network, against each other class: about 1 voxel in 8 is then thought a vertebra's."""


class LocalizerNetwork(nn.Module):
    """Logits of each voxel's class.

    Parameters
    ----------
    config : LocalizerConfig
    """

    def __init__(self, config: LocalizerConfig) -> None:
        super().__init__()
        self._block = config.block
        voxels = config.block**3
        self.unet = UNet(
            spatial_dims=3,
            in_channels=voxels,
            out_channels=config.channels[0],
            channels=config.channels,
            strides=(2,) * (len(config.channels) - 1),
            num_res_units=config.units,
        )
        hidden = 2 * config.channels[0]
        last = nn.Conv3d(hidden, len(CLASSES) * voxels, kernel_size=1)
        with torch.no_grad():
            # Most voxels are background. A network that has yet to learn so learns nothing else.
            prior = torch.zeros(len(CLASSES), voxels)
            prior[CLASSES.index(BACKGROUND)] = BACKGROUND_LOGIT
            cast(Tensor, last.bias).copy_(prior.flatten())
            last.weight.mul_(0.3)
        # It sees the voxels themselves too: the features know which vertebra, the HU where bone is.
        self.head = nn.Sequential(
            nn.Conv3d(config.channels[0] + voxels, hidden, kernel_size=1), nn.PReLU(), last
        )

    def forward(self, hu: Tensor) -> Tensor:
        """Map (batch, 1, S, S, S), float32, HU to logits (batch, classes, S, S, S)."""
        return unfold_blocks(self.head(self.see(hu)), self._block)

    def see(self, hu: Tensor) -> Tensor:
        """Map HU to features and voxels of each place, (batch, channels, places along z, y, x)."""
        seen = (hu.clamp(LOW_HU, HIGH_HU) - LOW_HU) * (2 / (HIGH_HU - LOW_HU)) - 1
        folded = fold_blocks(seen, self._block)
        return torch.cat([self.unet(folded), folded], dim=1)

    def name(self, features: Tensor, sample: Tensor, place: Tensor) -> Tensor:
        """Logits of chosen places only, shape (places, classes, block, block, block)."""
        chosen = features.flatten(2)[sample, :, place]
        named = self.head(chosen[..., None, None, None])
        return cast(Tensor, named.reshape(len(chosen), len(CLASSES), -1))


class LocalizerGraph(nn.Module):
    """What is exported: the network and the softmax over its classes."""

    def __init__(self, network: LocalizerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, overview: Tensor) -> Tensor:
        """Map HU to probabilities; shapes as in `LocalizerNetwork.forward`."""
        return cast(Tensor, self.network(overview)).softmax(dim=1)


def fold_blocks(cube: Tensor, block: int) -> Tensor:
    """Make each block of voxels the channels of one: (b, c, S, S, S) to (b, c x block^3, ...)."""
    if block == 1:
        return cube
    batch, channels, *sides = cube.shape
    z, y, x = (side // block for side in sides)
    split = cube.reshape(batch, channels, z, block, y, block, x, block)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, channels * block**3, z, y, x)


def unfold_blocks(cube: Tensor, block: int) -> Tensor:
    """Undo `fold_blocks`."""
    if block == 1:
        return cube
    batch, channels, z, y, x = cube.shape
    split = cube.reshape(batch, channels // block**3, block, block, block, z, y, x)
    joined = split.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return joined.reshape(batch, channels // block**3, z * block, y * block, x * block)


def build_network(config: LocalizerConfig, seed: int) -> LocalizerNetwork:
    """Make a network with random weights."""
    torch.manual_seed(seed)
    return LocalizerNetwork(config)
