"""The training loss: a weighted sum of terms by name (`loss.terms` of a recipe). Paper: Eq. 6.

A file in this folder adds a term: a function under `@term("name")` or `@segmentation_term("name")`. Every file here is
imported with the package, so the name is then valid in a recipe.
"""

from importlib import import_module
from pkgutil import iter_modules

from sam2_3dmed.training.losses.registry import (
    CERTAIN_BACKGROUND,
    TERMS,
    LossInputs,
    TotalLoss,
    class_masks,
    mean_of_annotated,
    reference_masks,
    segmentation_term,
    term,
)

__all__ = [
    "CERTAIN_BACKGROUND",
    "TERMS",
    "LossInputs",
    "TotalLoss",
    "class_masks",
    "mean_of_annotated",
    "reference_masks",
    "segmentation_term",
    "term",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
