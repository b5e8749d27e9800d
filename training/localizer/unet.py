"""The localizer's network: from an overview in HU to a class for each voxel.

A residual 3D U-Net (Çiçek et al., 3D U-Net, MICCAI 2016; MONAI's `UNet`) at half the resolution:
blocks of voxels are folded into channels and unfolded at the output (Shi et al., sub-pixel
convolution, CVPR 2016), which costs no detail and an eighth of the time.
"""

from typing import cast

import torch
from monai.networks.nets import UNet
from torch import Tensor, nn

from storage_schemas.localizer_card import BACKGROUND, CLASSES
from training.localizer.config import LocalizerConfig

LOW_HU, HIGH_HU = -500.0, 1300.0
"""Window of the network in HU, from fat and air, which show the outline of the neck, to dense bone.
"""
BACKGROUND_LOGIT = 4.0
"""Initial logit of the background, at which about 1 voxel in 8 is predicted as vertebra."""


class LocalizerNetwork(nn.Module):
    """Network that computes the class logits of each voxel.

    Parameters
    ----------
    config : LocalizerConfig
        Size of the network.
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
            # Most voxels are background; without this prior, early training learns nothing else.
            prior = torch.zeros(len(CLASSES), voxels)
            prior[CLASSES.index(BACKGROUND)] = BACKGROUND_LOGIT
            cast(Tensor, last.bias).copy_(prior.flatten())
            last.weight.mul_(0.3)
        # The head also takes the voxels: features name the vertebra, HU locate the bone.
        self.head = nn.Sequential(
            nn.Conv3d(config.channels[0] + voxels, hidden, kernel_size=1), nn.PReLU(), last
        )

    def forward(self, hu: Tensor) -> Tensor:
        """Map HU, (batch, 1, S, S, S), float32, to logits, (batch, classes, S, S, S)."""
        return unfold_blocks(self.head(self.extract_features(hu)), self._block)

    def extract_features(self, hu: Tensor) -> Tensor:
        """Map HU to features and voxels of each place, (batch, channels, places along z, y, x)."""
        seen = (hu.clamp(LOW_HU, HIGH_HU) - LOW_HU) * (2 / (HIGH_HU - LOW_HU)) - 1
        folded = fold_blocks(seen, self._block)
        return torch.cat([self.unet(folded), folded], dim=1)

    def classify_places(self, features: Tensor, sample: Tensor, place: Tensor) -> Tensor:
        """Compute logits of some places, shape (places, classes, block^3)."""
        chosen = features.flatten(2)[sample, :, place]
        named = self.head(chosen[..., None, None, None])
        return cast(Tensor, named.reshape(len(chosen), len(CLASSES), -1))


class LocalizerGraph(nn.Module):
    """Exported graph: the network, and a softmax over its classes."""

    def __init__(self, network: LocalizerNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, overview: Tensor) -> Tensor:
        """Map HU to probabilities, with the shapes of `LocalizerNetwork.forward`."""
        return cast(Tensor, self.network(overview)).softmax(dim=1)


def fold_blocks(cube: Tensor, block: int) -> Tensor:
    """Fold each block of voxels into channels: (b, c, S, S, S) to (b, c x block^3, ...)."""
    if block == 1:
        return cube
    batch, channels, *sides = cube.shape
    z, y, x = (side // block for side in sides)
    split = cube.reshape(batch, channels, z, block, y, block, x, block)
    return split.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, channels * block**3, z, y, x)


def unfold_blocks(cube: Tensor, block: int) -> Tensor:
    """Invert `fold_blocks`."""
    if block == 1:
        return cube
    batch, channels, z, y, x = cube.shape
    split = cube.reshape(batch, channels // block**3, block, block, block, z, y, x)
    joined = split.permute(0, 1, 5, 2, 6, 3, 7, 4)
    return joined.reshape(batch, channels // block**3, z * block, y * block, x * block)


def build_network(config: LocalizerConfig, seed: int) -> LocalizerNetwork:
    """Build a network with random weights."""
    torch.manual_seed(seed)
    return LocalizerNetwork(config)
