"""SAM2-3dMed: SAM2 as a prompt-free segmenter of 3D medical volumes.

`Volume` is a scan or a mask on its grid; `Predictor.load` reads a trained model, which makes a mask of a volume;
`evaluate` scores a folder of masks against a folder of labels. Each is imported when it is first asked for, so
that `import sam2_3dmed` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam2_3dmed.evaluation.cases import evaluate_folders as evaluate
    from sam2_3dmed.inference.predictor import Predictor
    from sam2_3dmed.volume.volume import Volume

__all__ = ["Predictor", "Volume", "__version__", "evaluate"]

__version__ = "0.1.0"

_HOMES = {
    "Predictor": ("sam2_3dmed.inference.predictor", "Predictor"),
    "Volume": ("sam2_3dmed.volume.volume", "Volume"),
    "evaluate": ("sam2_3dmed.evaluation.cases", "evaluate_folders"),
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
