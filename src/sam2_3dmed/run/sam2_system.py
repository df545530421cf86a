"""SAM2-3dMed as a system of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam2_3dmed.config import RunConfig, read_recipe, with_settings
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.run_config import Sam2Record
from sam2_3dmed.run.systems import OURS, Backend, Preparation, System, TrainingRun

if TYPE_CHECKING:
    import torch

    from sam2_3dmed.inference.interface import Segmenter
    from sam2_3dmed.volume.label_scheme import LabelScheme


class Sam2System(System):
    """Our own method. It imports torch only to train and to predict, so that mistakes in options come at once."""

    name = OURS
    title = "SAM2-3dMed"
    source = "arXiv 2510.08967"
    record_type = Sam2Record
    backends: tuple[Backend, ...] = ("pytorch", "onnxruntime")

    def recipe(self, name: str = "auto", settings: Sequence[str] = (), *, from_scratch: bool = False) -> RunConfig:
        if "without_pretraining" in name and not from_scratch:
            raise ConfigError(f"--recipe {name}: without pre-training means --weights none")
        return with_settings(read_recipe(name, from_scratch=from_scratch), settings)

    def check(self, recipe: RunConfig, *, weights: str, gpu_memory: float | None) -> None:
        from sam2_3dmed.run.build_model import check_recipe

        if recipe.model.promptable:
            raise ConfigError("model.promptable: prompts are learnt by `sam2-3dmed pretrain`, not from a data set")
        check_recipe(recipe, weights)

    def learns_without_labels(self, recipe: RunConfig) -> bool:
        return recipe.training.unlabelled_fraction > 0

    def require_labels(self, labels: LabelScheme, recipe: RunConfig) -> None:
        """An ignore label is left out of the losses, and regions have masks of their own; but boxes need neither."""
        if labels.regions and recipe.model.box_every:
            raise ConfigError("model.box_every draws boxes around single values, and this data set has regions")
        if labels.ignore is not None and recipe.model.box_every:
            raise ConfigError("model.box_every draws boxes around whole labels, and this data set has an ignore label")

    def start(self, preparation: Preparation) -> TrainingRun:
        from sam2_3dmed.run.sam2_run import start_run

        return start_run(preparation)

    def load(
        self, folder: Path, record: Sam2Record, *, device: torch.device, backend: Backend, **settings: Any
    ) -> Segmenter:
        from sam2_3dmed.run.sam2_model import load_onnx, load_pytorch

        if backend == "onnxruntime":
            return load_onnx(folder, record, **settings)
        return load_pytorch(folder, record, device, **settings)


SAM2_3DMED = Sam2System()
