"""The image encoders by name, as `model.encoder` of a recipe has them."""

from collections.abc import Mapping
from pkgutil import resolve_name

from sam2_3dmed.encoders.protocol import Encoder
from sam2_3dmed.errors import ConfigError, suggest

ENCODERS: Mapping[str, str] = {
    "hiera": "sam2_3dmed.encoders.hiera:HieraEncoder",
    "conv": "sam2_3dmed.encoders.conv:ConvEncoder",
}
"""Name -> where its class is. A class is imported when a recipe asks for it."""


def find_encoder(name: str) -> type[Encoder]:
    """The encoder of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in ENCODERS:
        raise ConfigError(f"model.encoder: no encoder {name!r}; {suggest(name, ENCODERS)}")
    encoder: type[Encoder] = resolve_name(ENCODERS[name])
    return encoder
