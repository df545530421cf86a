"""All that it takes to build a patch-based network again, and to bring a volume to what it has learnt from."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn

from sam2_3dmed.baselines.systems import PATCH_SYSTEMS
from sam2_3dmed.errors import WeightsError


class Intensities(BaseModel):
    """What a channel's mean and standard deviation are, after `Preprocessing`; none: those of each volume."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float | None = None
    std: float | None = None


class PatchSpec(BaseModel):
    """A patch-based model, all axes in the order (D, H, W) of slices.

    size: full or small; spacing_mm: of the grid that patches are cut from; patch: its voxels; intensities: of each
    channel; network: the arguments of its constructor; text: what embeds the names of the classes, if anything does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str
    size: str
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    intensities: tuple[Intensities, ...]
    num_classes: int
    network: dict[str, Any]
    text: str | None = None

    @property
    def about(self) -> str:
        """The model in a few words."""
        patch = " x ".join(map(str, self.patch))
        spacing = " x ".join(f"{value:.3g}" for value in self.spacing_mm)
        text = f", names {self.text}" if self.text else ""
        return f"{PATCH_SYSTEMS[self.system].title}, {self.size}, patches of {patch} voxels of {spacing} mm{text}"

    def build(self) -> nn.Module:
        """The network, with fresh weights.

        Raises: WeightsError if the arguments are not those of its constructor.
        """
        from sam2_3dmed.baselines.networks import build

        try:
            return build(self.system, self.network)
        except (TypeError, ValueError) as error:
            raise WeightsError(f"model.network: {self.system} cannot be built: {error}") from None

    def normalise(self, image: NDArray[np.floating]) -> NDArray[np.float32]:
        """Channels of mean 0 and standard deviation 1.

        image: (D, C, H, W) in [0, 1]. Returns: (C, D, H, W).
        """
        channels = np.moveaxis(image, 1, 0).astype(np.float32)
        for channel, known in zip(channels, self.intensities, strict=True):
            mean = channel.mean(dtype=np.float64) if known.mean is None else known.mean
            std = channel.std(dtype=np.float64) if known.std is None else known.std
            channel -= np.float32(mean)
            channel /= np.float32(max(std, 1e-6))
        return channels
