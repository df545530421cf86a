"""Every predictor has the methods of a segmenter, in names and arguments."""

import inspect

import pytest

from sam2_3dmed.baselines.nnunet.predictor import NnunetPredictor
from sam2_3dmed.baselines.predictor import PatchPredictor
from sam2_3dmed.inference.interface import Segmenter
from sam2_3dmed.inference.predictor import Predictor


@pytest.mark.parametrize("kind", [Predictor, PatchPredictor, NnunetPredictor])
@pytest.mark.parametrize("name", ["__call__", "with_auxiliary"])
def test_what_a_segmenter_has(kind: type, name: str) -> None:
    expected, found = (inspect.signature(getattr(one, name)).parameters for one in (Segmenter, kind))
    assert [(p.name, p.default) for p in expected.values()] == [(p.name, p.default) for p in found.values()]
