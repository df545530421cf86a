"""A way to move what starts at zero, upstream's model, and a folder of its weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sam2_3dmed.encoders.hiera import HIERA_SIZES, hiera_config
from sam2_3dmed.model.build import SIZES, sam2_config
from sam2_3dmed.model.network import SAM2For3dMed


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def move() -> Callable[..., None]:
    """Moves modules that start at zero, as training would."""

    def randomise(*modules: torch.nn.Module | None, std: float = 0.2) -> None:
        torch.manual_seed(7)
        for module in modules:
            if module is not None:
                for parameter in module.parameters():
                    torch.nn.init.normal_(parameter, std=std)

    return randomise


@pytest.fixture(scope="session")
def open_paths(move: Callable[..., None]) -> Callable[[SAM2For3dMed], SAM2For3dMed]:
    """Moves every zero-initialised map of a network, so that all its parts touch each other."""

    def open_all(network: SAM2For3dMed) -> SAM2For3dMed:
        decoders = [network.segmentation] + ([network.boundary.decoder] if network.boundary else [])
        move(network.srpp and network.srpp.to_context, network.boundary_to_segmentation)
        move(*(decoder.class_memory for decoder in decoders))
        for decoder in decoders:
            move(
                *(layer.cross_attn_image.o_proj for layer in decoder.memory_attention.layers if decoder.no_memory_token)
            )
        return network

    return open_all


@pytest.fixture(scope="session")
def upstream() -> torch.nn.Module:
    """Upstream's whole model at nano's widths; every weight is random, the ones it zeroes too."""
    from transformers import Sam2VideoModel

    torch.manual_seed(0)
    model = Sam2VideoModel(sam2_config(SIZES["nano"], 64, hiera_config(HIERA_SIZES["nano"], 64, 64)))
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        shared = model.shared_image_embedding.positional_embedding
        model.prompt_encoder.shared_embedding.positional_embedding.copy_(shared)
    return model


@pytest.fixture(scope="session")
def hf_folder(upstream: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    upstream.save_pretrained(folder)
    return folder
