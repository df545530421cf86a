"""The real nnU-Net as a system of the registry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_3dmed.baselines.nnunet.environment import find_python
from sam2_3dmed.baselines.recipe import NnunetConfig, NnunetRecord
from sam2_3dmed.baselines.systems import Baseline
from sam2_3dmed.config import changed
from sam2_3dmed.run.systems import Backend, Preparation, TrainingRun

if TYPE_CHECKING:
    import torch

    from sam2_3dmed.baselines.nnunet.predictor import NnunetPredictor
    from sam2_3dmed.volume.volume import Volume


class NnunetSystem(Baseline):
    """nnU-Net in an environment of its own, which `sam2-3dmed baselines setup nnunet` makes."""

    name = "nnunet"
    title = "nnU-Net"
    source = "Isensee et al., nnU-Net, Nature Methods 2021; nnunetv2 itself"
    record_type = NnunetRecord
    own_process = True

    def own_recipe(self) -> NnunetConfig:
        return NnunetConfig()

    def require(self) -> None:
        find_python()

    def start(self, preparation: Preparation) -> TrainingRun:
        from sam2_3dmed.baselines.nnunet.run import NnunetRun

        return NnunetRun(preparation)

    def load(
        self, folder: Path, record: NnunetRecord, *, device: torch.device, backend: Backend, **settings: Any
    ) -> NnunetPredictor:
        from sam2_3dmed.baselines.nnunet.predictor import NnunetPredictor
        from sam2_3dmed.run.run_folder import MODEL_FILE, read_weights

        read_weights(folder / MODEL_FILE)  # nnU-Net's process would predict with damaged ones, too
        config = changed(record.recipe.inference, settings, "inference")
        return NnunetPredictor(folder / MODEL_FILE, record.model, record.plan, device=device, config=config)

    def training_peaks(self, folder: Path) -> tuple[float | None, float | None]:
        from sam2_3dmed.baselines.nnunet.run import training_peaks

        return training_peaks(folder)

    def prediction_cost(self, segmenter: NnunetPredictor, volume: Volume) -> tuple[float, float | None, float | None]:
        return segmenter.cost_of(volume)


NNUNET = NnunetSystem()
