"""A spec builds its network again, and brings intensities to mean 0."""

from collections.abc import Callable

import numpy as np
import pytest

from sam2_3dmed.baselines.networks import build
from sam2_3dmed.baselines.recipe import Intensities, PatchSpec
from sam2_3dmed.errors import WeightsError


def test_a_spec_says_what_it_is_and_survives_json(make_spec: Callable[..., PatchSpec]) -> None:
    spec = make_spec("mednext_s")
    assert (spec.system, spec.size, spec.patch) == ("mednext_s", "small", (16, 32, 32))
    assert PatchSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_arguments_that_no_network_takes(make_spec: Callable[..., PatchSpec]) -> None:
    spec = make_spec()
    broken = spec.model_copy(update={"network": spec.network | {"depth": 3}})
    with pytest.raises(WeightsError, match=r"^model\.network: unet cannot be built: .*'depth'"):
        build(broken)


def test_intensities_of_the_data_set_or_of_the_volume(make_spec: Callable[..., PatchSpec]) -> None:
    channels = (Intensities(mean=0.5, std=0.25), Intensities())
    spec = make_spec().model_copy(update={"intensities": channels})
    image = np.random.default_rng(0).random((3, 2, 4, 5)).astype(np.float16)
    found = spec.normalise(image)
    assert found.shape == (2, 3, 4, 5)
    assert found[0] == pytest.approx((image[:, 0].astype(float) - 0.5) / 0.25, abs=1e-5)
    assert (found[1].mean(), found[1].std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-4))
    assert not spec.normalise(np.zeros((3, 2, 4, 5)))[1].any()  # a constant volume
