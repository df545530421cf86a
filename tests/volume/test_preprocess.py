"""The input of the network: intensities in [0, 1], channels, the slicing axis."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume import Volume
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing
from sam2_3dmed.volume.slices import volume_to_slices

HU = Normalisation("fixed", -100, 300)
PERCENTILES = Normalisation("percentiles", 0.5, 99.5)


def preprocessed(array, *normalisation, axis="axial", affine=None):
    return Preprocessing(axis, normalisation).slices(Volume(array, np.eye(4) if affine is None else affine))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.float32, np.float64, ">i2", ">f8"])
def test_fixed_bounds(dtype):
    slices = preprocessed(np.array([[[-1000, -100, 0, 100, 300, 3000]]], dtype), HU)
    assert slices.dtype == np.float32
    assert slices.shape == (6, 1, 1, 1)
    assert slices.ravel().tolist() == [0, 0, 0.25, 0.5, 1, 1]


def test_fixed_bounds_of_unsigned_and_bool_voxels_do_not_wrap():
    low = Normalisation("fixed", 10, 20)
    assert preprocessed(np.array([[[0, 5, 15, 25]]], np.uint8), low).ravel().tolist() == [0, 0, 0.5, 1]
    assert preprocessed(np.array([[[0, 65535]]], np.uint16), low).ravel().tolist() == [0, 1]
    assert preprocessed(np.array([[[False, True]]]), Normalisation("fixed", 0, 1)).ravel().tolist() == [0, 1]


def test_percentiles_by_hand():
    """Of 0..100 the 10th and 90th percentiles are 10 and 90."""
    array = np.random.default_rng(0).permutation(np.arange(101, dtype=np.int16)).reshape(101, 1, 1)
    slices = preprocessed(array, Normalisation("percentiles", 10, 90))
    expected = np.clip((array.astype(float) - 10) / 80, 0, 1)
    np.testing.assert_allclose(slices[0, 0, 0], expected[:, 0, 0], atol=1e-7)


def test_percentiles_of_the_whole_volume_and_not_of_a_slice():
    array = np.zeros((10, 10, 2), np.float32)
    array[..., 0] = np.linspace(0, 1, 100).reshape(10, 10)
    array[..., 1] = np.linspace(0, 3, 100).reshape(10, 10)
    slices = preprocessed(array, Normalisation("percentiles", 0, 100))
    assert slices[0].max() == pytest.approx(1 / 3)
    assert slices[1].max() == 1


@given(
    array=hnp.arrays(
        st.sampled_from([np.int16, np.uint16, np.float32, np.float64]),
        (2, 3, 4),
        elements=st.integers(0, 30000),
    ),
    normalisation=st.sampled_from([HU, PERCENTILES]),
)
def test_output_is_within_0_and_1_and_keeps_the_order(array, normalisation):
    slices = preprocessed(array, normalisation)
    assert slices.dtype == np.float32
    assert slices.min() >= 0
    assert slices.max() <= 1
    order = np.argsort(array.transpose(2, 1, 0).ravel(), kind="stable")
    assert (np.diff(slices.ravel()[order]) >= 0).all()


def test_percentiles_do_not_care_about_the_intensity_scale():
    array = np.random.default_rng(1).normal(size=(6, 7, 8))
    np.testing.assert_allclose(
        preprocessed(array, PERCENTILES), preprocessed(array * 1e5 + 3e6, PERCENTILES), atol=1e-6
    )


@given(
    array=hnp.arrays(
        st.sampled_from([np.int16, np.uint8, np.int32, np.float32, ">f8"]),
        st.sampled_from([(3, 4, 5), (3, 4, 5, 2)]),
        elements=st.integers(0, 120),
    ),
    axis=st.sampled_from(["axial", "coronal", "sagittal"]),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
    kind=st.sampled_from([Normalisation("fixed", 3, 97.3), PERCENTILES]),
    start=st.integers(0, 5),
    stop=st.integers(0, 7),
)
def test_slices_on_demand_are_the_same_to_the_last_bit(array, axis, signs, kind, start, stop):
    volume = Volume(array, np.diag([*signs, 1.0]))
    plan = Preprocessing(axis, (kind,) * volume.num_channels)
    slices, stack = plan.slices(volume), plan.stack(volume)
    assert (stack.shape, len(stack)) == (slices.shape, len(slices))
    found = stack[start:stop]
    assert (found.dtype, found.flags.writeable) == (np.float32, True)
    np.testing.assert_array_equal(found, slices[start:stop])
    # The definition, in one formula.
    one = volume_to_slices(volume, axis).reshape(slices.shape)
    for channel in range(volume.num_channels):
        low, high = kind.bounds(one[:, channel])
        if low < high:
            exact = (np.clip(one[:, channel].astype(np.float64), low, high) - low) / (high - low)
            np.testing.assert_array_equal(slices[:, channel], exact.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_a_stack_costs_less_than_a_copy_of_the_volume(dtype):
    volume = Volume(np.random.default_rng(0).integers(-500, 500, (100, 100, 1600)).astype(dtype).T.copy().T, np.eye(4))
    tracemalloc.start()
    try:
        stack = Preprocessing("axial", (PERCENTILES,)).stack(volume)
        for start in range(0, len(stack), 8):
            stack[start : start + 8]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6  # the volume has 32 or 64 MB


@pytest.mark.parametrize("normalisation", [PERCENTILES, Normalisation("fixed", 7, 7)])
def test_a_constant_volume_becomes_zeros(normalisation):
    for value in (7, 8):
        assert not preprocessed(np.full((2, 3, 4), value, np.int16), normalisation).any()


def test_each_channel_has_its_own_normalisation():
    array = np.stack([np.full((2, 2, 2), 100), np.arange(8).reshape(2, 2, 2) * 1000], -1)
    slices = preprocessed(array, HU, Normalisation("percentiles", 0, 100))
    assert slices.shape == (2, 2, 2, 2)
    assert (slices[:, 0] == 0.5).all()
    assert slices[:, 1].min() == 0
    assert slices[:, 1].max() == 1


def test_slices_follow_the_affine():
    """Two files of one patient, LPS and RAS, give the network the same slices."""
    array = np.random.default_rng(2).integers(-100, 300, (3, 4, 5)).astype(np.int16)
    ras = preprocessed(array, HU)
    lps = preprocessed(array[::-1, ::-1], HU, affine=np.diag([-1, -1, 1, 1]))
    np.testing.assert_array_equal(ras, lps)
    assert ras.shape == (5, 1, 4, 3)
    assert preprocessed(array, HU, axis="sagittal").shape == (3, 1, 5, 4)


def test_the_volume_is_left_alone():
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    before = array.copy()
    preprocessed(array, HU)[...] = 9
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize(
    ("shape", "num_channels", "message"),
    [
        ((2, 3, 4), 2, "the volume has 1 channel, the plan has 2"),
        ((2, 3, 4, 2), 1, "the volume has 2 channels, the plan has 1"),
        ((2, 3, 4, 3), 2, "the volume has 3 channels, the plan has 2"),
    ],
)
def test_a_volume_with_other_channels_than_the_plan(shape, num_channels, message):
    with pytest.raises(VolumeError, match=f"^{message}$"):
        preprocessed(np.zeros(shape), *[HU] * num_channels)


def test_real_ct(shared_data):
    volume = Volume.read(shared_data / "Task91_SarcomaCT" / "imagesTr" / "sts_019.nii.gz")
    slices = Preprocessing("axial", (Normalisation("fixed", -150, 250),)).slices(volume)
    x, y, z = volume.shape
    assert slices.shape == (z, 1, y, x)
    expected = np.clip((volume.array[::-1, ::-1, 3].T.astype(float) + 150) / 400, 0, 1)
    np.testing.assert_allclose(slices[3, 0], expected, atol=1e-6)


def test_real_mr_of_any_scale(shared_data):
    for path in sorted((shared_data / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[:20]:
        slices = Preprocessing("coronal", (PERCENTILES,)).slices(Volume.read(path))
        assert slices.min() == 0
        assert slices.max() == 1
        assert 0.1 < slices.mean() < 0.7
