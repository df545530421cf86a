"""The trained model of SAM2-3dMed: how it is loaded, and the predictor around it. Nothing of training is imported."""

from pathlib import Path
from typing import Any, cast

import torch

from sam2_3dmed.config import changed
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.build import build_network
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.processes.journal import checksum
from sam2_3dmed.run.run_config import Sam2Record
from sam2_3dmed.run.run_folder import MODEL_FILE, fill_network, read_weights


def make_predictor(network: SAM2For3dMed, record: Sam2Record, **settings: Any) -> Predictor:
    """A predictor with the run's section `inference`, changed by `settings`."""
    return Predictor(
        network,
        preprocessing=record.plan.preprocessing,
        labels=record.plan.scheme,
        slab_slices=record.recipe.slab_slices or record.plan.slab_slices,
        config=changed(record.recipe.inference, settings, "inference"),
    )


def load_pytorch(folder: Path, record: Sam2Record, device: torch.device, **settings: Any) -> Predictor:
    """The trained model of a run folder."""
    network = build_network(record.recipe.model, record.plan.num_classes)
    fill_network(network, read_weights(folder / MODEL_FILE), folder / MODEL_FILE)
    return make_predictor(network.to(device).eval(), record, **settings)


def load_onnx(folder: Path, record: Sam2Record, **settings: Any) -> Predictor:
    """The model that `export` wrote into a folder; it runs on the CPU."""
    from sam2_3dmed.inference.onnx_network import OnnxNetwork

    network = OnnxNetwork(
        folder,
        run_sha256=record.sha256(),
        model_sha256=checksum([folder / MODEL_FILE]) if (folder / MODEL_FILE).is_file() else None,
        slab_slices=record.recipe.slab_slices or record.plan.slab_slices,
        has_memory=record.recipe.model.memory != "none",
    )
    # It has what slabs mode uses of a network, and `require` refuses all other settings.
    predictor = make_predictor(cast(SAM2For3dMed, network), record, **settings)
    network.require(predictor.config)
    predictor.config = changed(predictor.config, {"precision": "32"}, "inference")
    return predictor
