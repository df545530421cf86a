"""SAM2-3dMed: SAM2 as a prompt-free segmenter of 3D medical volumes.

`train` makes a run folder of a `TrainRequest`, and `load_model` reads one. `predict` carries out a `PredictRequest`.
`evaluate` scores a folder of masks against a folder of labels. `Volume` is a scan or a mask on its grid. Each name is
imported when it is first used, so that `import sam2_3dmed` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam2_3dmed.evaluation.cases import evaluate_folders as evaluate
    from sam2_3dmed.run.predict import PredictRequest, predict
    from sam2_3dmed.run.run_folder import load_model
    from sam2_3dmed.run.train import TrainRequest, train
    from sam2_3dmed.volume.volume import Volume

__all__ = ["PredictRequest", "TrainRequest", "Volume", "__version__", "evaluate", "load_model", "predict", "train"]

__version__ = "0.1.0"

_HOMES = {
    "PredictRequest": ("sam2_3dmed.run.predict", "PredictRequest"),
    "TrainRequest": ("sam2_3dmed.run.train", "TrainRequest"),
    "Volume": ("sam2_3dmed.volume.volume", "Volume"),
    "evaluate": ("sam2_3dmed.evaluation.cases", "evaluate_folders"),
    "load_model": ("sam2_3dmed.run.run_folder", "load_model"),
    "predict": ("sam2_3dmed.run.predict", "predict"),
    "train": ("sam2_3dmed.run.train", "train"),
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value: object = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
