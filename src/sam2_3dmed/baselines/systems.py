"""The systems that learn from patches, each with the network that its name stands for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_3dmed.baselines.recipe import PatchConfig, PatchRecord, PatchTrainingConfig
from sam2_3dmed.config import changed, with_settings
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.systems import OURS, Backend, Preparation, System, TrainingRun

if TYPE_CHECKING:
    import torch

    from sam2_3dmed.inference.interface import Segmenter
    from sam2_3dmed.volume.label_scheme import LabelScheme

_NNUNET: Mapping[str, Any] = {
    "epochs": 1000,
    "samples_per_epoch": 500,
    "batch_size": 2,
    "optimizer": "sgd",
    "learning_rate": 1e-2,
    "weight_decay": 3e-5,
    "final_learning_rate_fraction": 0.0,
    "clip_gradient_norm": 12.0,
    "foreground_fraction": 1 / 3,
    "validate_every": 50,
    "patience": 4,
}
"""How its authors trained it: epochs of 250 steps of 2 patches. Early stopping is ours."""
_MEDNEXT: Mapping[str, Any] = {**_NNUNET, "optimizer": "adamw", "learning_rate": 1e-3}
_UNIVERSAL: Mapping[str, Any] = {
    **_NNUNET,
    "optimizer": "adamw",
    "schedule": "cosine",
    "learning_rate": 1e-4,
    "weight_decay": 1e-5,
    "warmup_fraction": 0.1,
    "foreground_fraction": 2 / 3,
}


class Baseline(System):
    """A system that has one recipe of its own and starts without weights."""

    @abstractmethod
    def own_recipe(self) -> Any:
        """How its authors trained it."""

    def recipe(self, name: str = "auto", settings: Sequence[str] = (), *, from_scratch: bool = False) -> Any:
        if name != "auto":
            raise ConfigError(f"--recipe {name} is for {OURS}; {self.name} has its own, which --set changes")
        return with_settings(self.own_recipe(), settings)

    def require_labels(self, labels: LabelScheme, recipe: Any) -> None:
        """Regions have a sigmoid each, and voxels to be ignored count in no loss, as in nnU-Net."""

    def check(self, recipe: Any, *, weights: str, gpu_memory: float | None) -> None:
        self.require()
        if weights not in ("auto", "none"):
            raise ConfigError(f"--weights {weights}: {self.name} starts without weights")
        if gpu_memory is not None:
            raise ConfigError(f"--gpu-memory is for {OURS}; of {self.name} set training.batch_size or model.patch")


@dataclass(frozen=True, eq=False)
class PatchSystem(Baseline):
    """A system whose network our own trainer trains on patches."""

    name: str
    title: str
    source: str
    training: Mapping[str, Any]
    """How its authors trained it."""
    packages: tuple[str, ...] = ("monai",)
    """Of the extra `baselines` that it needs."""
    record_type = PatchRecord
    learns_from_patches = True

    def own_recipe(self) -> PatchConfig:
        return PatchConfig(system=self.name, training=PatchTrainingConfig(**self.training))

    def require(self) -> None:
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise ConfigError(f"{self.name} needs {' and '.join(missing)}: pip install 'sam2-3dmed[baselines]'")

    def check(self, recipe: PatchConfig, *, weights: str, gpu_memory: float | None) -> None:
        from sam2_3dmed.training.loggers import require_loggers

        require_loggers(recipe.training.loggers)
        super().check(recipe, weights=weights, gpu_memory=gpu_memory)

    def start(self, preparation: Preparation) -> TrainingRun:
        from sam2_3dmed.baselines.train import PatchRun

        self.require()
        return PatchRun(preparation)

    def load(
        self, folder: Path, record: PatchRecord, *, device: torch.device, backend: Backend, **settings: Any
    ) -> Segmenter:
        from sam2_3dmed.baselines.networks import build
        from sam2_3dmed.baselines.predictor import PatchPredictor
        from sam2_3dmed.run.run_config import CONFIG_FILE
        from sam2_3dmed.run.run_folder import MODEL_FILE, fill_network, read_weights

        try:
            network = build(record.model)
        except Exception as error:  # each network refuses arguments in its own way
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"{folder / CONFIG_FILE}: model: no network can be built of it: {reason}") from None
        fill_network(network, read_weights(folder / MODEL_FILE), folder / MODEL_FILE)
        config = changed(record.recipe.inference, settings, "inference")
        return PatchPredictor(network.to(device).eval(), record.model, record.plan, config)


_ABOUT_MEDNEXT = "Roy et al., MedNeXt, MICCAI 2023; MONAI's implementation"

UNET = PatchSystem(
    "unet", "U-Net (nnU-Net's plain form)", "Isensee et al., nnU-Net, Nature Methods 2021; MONAI's DynUNet", _NNUNET
)
MEDNEXT_S = PatchSystem("mednext_s", "MedNeXt-S", _ABOUT_MEDNEXT, _MEDNEXT)
MEDNEXT_B = PatchSystem("mednext_b", "MedNeXt-B", _ABOUT_MEDNEXT, _MEDNEXT)
MEDNEXT_M = PatchSystem("mednext_m", "MedNeXt-M", _ABOUT_MEDNEXT, _MEDNEXT)
MEDNEXT_L = PatchSystem("mednext_l", "MedNeXt-L", _ABOUT_MEDNEXT, _MEDNEXT)
NNFORMER = PatchSystem("nnformer", "nnFormer", "Zhou et al., nnFormer, IEEE TIP 2023; our own implementation", _NNUNET)
UNIVERSAL = PatchSystem(
    "universal",
    "Universal Model",
    "Liu et al., CLIP-Driven Universal Model, ICCV 2023; MONAI's SwinUNETR and our own head",
    _UNIVERSAL,
    packages=("monai", "einops"),
)
