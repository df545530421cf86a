"""The real nnU-Net as a system of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_3dmed.baselines.nnunet.environment import find_python
from sam2_3dmed.baselines.nnunet.recipe import NnunetConfig, NnunetRecord
from sam2_3dmed.baselines.systems import check_start, own_recipe_only
from sam2_3dmed.config import with_settings
from sam2_3dmed.run.systems import Backend, Preparation, System, TrainingRun

if TYPE_CHECKING:
    import torch

    from sam2_3dmed.baselines.nnunet.predictor import NnunetPredictor
    from sam2_3dmed.volume.volume import Volume


class NnunetSystem(System):
    """nnU-Net in an environment of its own, which `sam2-3dmed baselines setup nnunet` makes."""

    name = "nnunet"
    title = "nnU-Net"
    source = "Isensee et al., nnU-Net, Nature Methods 2021; nnunetv2 itself"
    record_type = NnunetRecord
    own_process = True

    def recipe(self, name: str = "auto", settings: Sequence[str] = (), *, from_scratch: bool = False) -> NnunetConfig:
        own_recipe_only(self.name, name)
        return with_settings(NnunetConfig(), settings)

    def require(self) -> None:
        find_python()

    def check(self, recipe: NnunetConfig, *, weights: str, gpu_memory: float | None) -> None:
        self.require()
        check_start(self.name, weights, gpu_memory)

    def start(self, preparation: Preparation) -> TrainingRun:
        from sam2_3dmed.baselines.nnunet.run import start_run

        self.require()
        return start_run(preparation)

    def load(
        self, folder: Path, record: NnunetRecord, *, device: torch.device, backend: Backend, **settings: Any
    ) -> NnunetPredictor:
        from sam2_3dmed.baselines.nnunet.predictor import load_run

        return load_run(folder, record, device, **settings)

    def training_peaks(self, folder: Path) -> tuple[float | None, float | None]:
        from sam2_3dmed.baselines.nnunet.run import training_peaks

        return training_peaks(folder)

    def prediction_cost(self, segmenter: NnunetPredictor, volume: Volume) -> tuple[float, float | None, float | None]:
        return segmenter.cost_of(volume)


NNUNET = NnunetSystem()
