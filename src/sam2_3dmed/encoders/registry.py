"""The image encoders by name, as `model.encoder` of a recipe has them."""

from collections.abc import Mapping

from sam2_3dmed.encoders.conv import ConvEncoder
from sam2_3dmed.encoders.hiera import HieraEncoder
from sam2_3dmed.encoders.protocol import Encoder
from sam2_3dmed.errors import ConfigError, suggest

ENCODERS: Mapping[str, type[Encoder]] = {
    "hiera": HieraEncoder,
    "conv": ConvEncoder,
}


def find_encoder(name: str) -> type[Encoder]:
    """The encoder of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ENCODERS:
        raise ConfigError(f"model.encoder: no encoder {name!r}; {suggest(name, ENCODERS)}")
    return ENCODERS[name]
