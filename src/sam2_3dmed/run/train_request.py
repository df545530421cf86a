"""What a training run is asked for."""

from dataclasses import dataclass
from pathlib import Path

from sam2_3dmed.baselines.nnunet.recipe import NnunetConfig
from sam2_3dmed.baselines.recipes import SystemConfig, system_recipe
from sam2_3dmed.baselines.systems import OURS, require_system
from sam2_3dmed.config import RunConfig
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run.build_model import check_adaptation
from sam2_3dmed.training.loggers import require_loggers
from sam2_3dmed.training.losses import TotalLoss


@dataclass(frozen=True)
class TrainRequest:
    """What a training run is asked for.

    data: the data set's folder; out: the run folder, none for runs/NAME; config: the recipe, none for the system's own;
    plan: a YAML file instead of the proposed plan;
    fold: (i, n), 1 <= i <= n; resume: go on with the run in `out`, with the recipe, plan and split it has; cache:
    folder for prepared cases, none for one beside the run folders; gpu_memory: what a GPU has, in GB, into which a step
    is made to fit; devices, nodes: see `DistributedContext.find`; system: ours, or one of `baselines.systems.SYSTEMS`.
    """

    data: Path
    out: Path | None = None
    config: RunConfig | SystemConfig | None = None
    weights: str = "auto"
    plan: Path | None = None
    fold: tuple[int, int] | None = None
    resume: bool = False
    cache: Path | None = None
    gpu_memory: float | None = None
    devices: int | None = None
    nodes: int | None = None
    system: str = OURS

    @property
    def recipe(self) -> RunConfig | SystemConfig:
        """What the run is told."""
        if self.config is not None:
            return self.config
        return RunConfig() if self.system == OURS else system_recipe(self.system)

    def check(self) -> None:
        """Raise ConfigError for what cannot be; here, since reading a data set can take minutes."""
        if not isinstance(self.recipe, NnunetConfig):
            require_loggers(self.recipe.training.loggers)
        if self.system == OURS:
            if not isinstance(self.recipe, RunConfig):
                raise ConfigError(f"this recipe is for {self.recipe.system}, not for {OURS}")
            check_adaptation(self.recipe, self.weights)
            TotalLoss(self.recipe.loss)  # refuses unknown terms
            return
        require_system(self.system)
        if isinstance(self.recipe, RunConfig) or self.recipe.system != self.system:
            raise ConfigError(f"this recipe is not for {self.system}; `system_recipe` makes one")
        if self.weights not in ("auto", "none"):
            raise ConfigError(f"--weights {self.weights}: {self.system} starts without weights")
        if self.gpu_memory is not None:
            raise ConfigError(f"--gpu-memory is for {OURS}; of {self.system} set training.batch_size or model.patch")
