"""A mask lies on its volume's grid, whatever the file looks like."""

import threading
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sam2_3dmed.config import InferenceConfig
from sam2_3dmed.errors import Cancelled, ConfigError, VolumeError
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing
from sam2_3dmed.volume.volume import Volume

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (12, -9, 17), degrees=True).as_matrix() @ np.diag([0.7, 0.8, 4.0])
OBLIQUE[:3, 3] = (-50, 20, 300)


def body(shape, dtype=np.float32, seed=0):
    """Smooth blobs from 0 to 200."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 2, axes=(0, 1))
    return (200 * (noise - noise.min()) / max(np.ptp(noise), 1e-9)).astype(dtype)


def stored(volume, axes, flips):
    """The same body stored in another order: axes permuted, then some of them reversed."""
    array, affine = volume.array.transpose(*axes, *range(3, volume.array.ndim)), volume.affine.copy()
    affine[:3, :3] = affine[:3, :3][:, axes]
    for axis in np.flatnonzero(flips):
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
    return Volume(np.flip(array, np.flatnonzero(flips)), affine)


@pytest.fixture(scope="session")
def make(make_network):
    def predictor(labels=None, channels=1, axis="axial", slab_slices=3, **options):
        labels = labels or {1: "a", 2: "b"}
        preprocessing = Preprocessing(axis, (Normalisation("fixed", 0, 200),) * channels)
        config = InferenceConfig(**{"direction": "forward", "precision": "32", **options})
        return Predictor(
            make_network(len(labels)),
            preprocessing=preprocessing,
            labels=labels,
            slab_slices=slab_slices,
            config=config,
        )

    return predictor


def require_on_grid(mask, volume):
    assert mask.shape == volume.shape
    assert mask.array.ndim == 3
    assert np.array_equal(mask.affine, volume.affine)


@pytest.fixture(scope="module")
def reference(make):
    volume = Volume(body((17, 14, 3)), OBLIQUE)
    mask = make()(volume)
    require_on_grid(mask, volume)
    assert set(np.unique(mask.array)) == {0, 1, 2}  # the tests with it would show nothing otherwise
    return volume, mask


@pytest.fixture(scope="module")
def expected(make):
    return make()(Volume(body((15, 12, 2), np.int16), OBLIQUE))


class TestGrid:
    @pytest.mark.parametrize("axes", list(permutations(range(3))))
    def test_the_order_in_which_a_body_is_stored_changes_nothing(self, make, reference, axes):
        volume, mask = reference
        predictor = make()
        for flips in product([False, True], repeat=3):
            other = stored(volume, axes, flips)
            found = predictor(other)
            require_on_grid(found, other)
            assert np.array_equal(found.array, stored(mask, axes, flips).array)

    @pytest.mark.parametrize("axis", ["sagittal", "coronal", "axial"])
    def test_every_slicing_axis(self, make, axis):
        volume = Volume(body((5, 6, 7)), OBLIQUE)
        require_on_grid(make(axis=axis)(volume), volume)

    def test_slices_are_those_of_the_plans_axis(self, make, reference):
        volume, mask = reference
        turned = Volume(volume.array.transpose(2, 0, 1), np.diag([4.0, 0.8, 0.7, 1]))  # R A S; slices run to R
        # sagittal: H = S, W = A; the axial picture has H = its second axis, W = its first
        assert np.array_equal(make(axis="sagittal")(turned).array, mask.array.transpose(2, 0, 1))

    @pytest.mark.parametrize("shape", [(9, 8, 1), (9, 8, 2), (1, 8, 4), (200, 3, 2), (70, 90, 2)])
    def test_unusual_shapes(self, make, shape):
        volume = Volume(body(shape), OBLIQUE)
        require_on_grid(make(slab_slices=5, direction="both")(volume), volume)


class TestFiles:
    @pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "<f4", "<f8", ">f8", "<i4", "u1"])
    def test_the_type_of_the_voxels_changes_nothing(self, make, expected, tmp_path, dtype):
        array = body((15, 12, 2), np.int16).astype(dtype)
        header = nib.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<")
        header.set_data_dtype(array.dtype)
        nib.save(nib.Nifti1Image(array, OBLIQUE, header), tmp_path / "a.nii.gz")
        self._check(make, expected, tmp_path)

    @pytest.mark.parametrize(("slope", "intercept"), [(2.0, -100.0), (-0.5, 3.0)])
    def test_a_scaled_file_is_what_it_stands_for(self, make, expected, tmp_path, slope, intercept):
        array = body((15, 12, 2), np.int16)
        image = nib.Nifti1Image(np.zeros(array.shape, dtype=np.int16), OBLIQUE)
        image.header.set_slope_inter(slope, intercept)
        raw = ((array - intercept) / slope).round().astype(np.int16)
        content = bytearray(image.to_bytes())
        content[352:] = raw.tobytes(order="F")
        np.frombuffer(content, dtype="<f4", count=2, offset=112)[:] = slope, intercept
        (tmp_path / "a.nii").write_bytes(content)
        volume = Volume.read(tmp_path / "a.nii")
        assert np.abs(volume.array - array).max() <= abs(slope) / 2
        mask = make()(volume)
        assert (mask.array == expected.array).mean() > 0.97

    def test_a_written_mask_reads_back(self, make, expected, tmp_path):
        expected.write(tmp_path / "mask.nii.gz")
        again = Volume.read(tmp_path / "mask.nii.gz")
        assert np.array_equal(again.array, expected.array)
        assert again.array.dtype == np.uint8
        np.testing.assert_allclose(again.affine, expected.affine, atol=1e-4)

    @staticmethod
    def _check(make, expected, folder):
        volume = Volume.read(folder / "a.nii.gz")
        mask = make()(volume)
        require_on_grid(mask, volume)
        assert np.array_equal(mask.array, expected.array)


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "dtype"),
        [({1: "a", 2: "b"}, np.uint8), ({3: "a", 255: "b"}, np.uint8), ({3: "a", 300: "b"}, np.uint16)],
    )
    def test_classes_get_their_values(self, make, labels, dtype):
        volume = Volume(body((17, 14, 2)), np.eye(4))
        plain, mapped = make()(volume).array, make(labels)(volume).array
        assert mapped.dtype == dtype
        assert np.array_equal(mapped, np.array([0, *labels])[plain])
        assert set(np.unique(mapped)) == {0, *labels}

    def test_one_class(self, make):
        mask = make({5: "only"})(Volume(body((17, 14, 2)), np.eye(4)))
        assert set(np.unique(mask.array)) <= {0, 5}

    def test_post_processing(self, make):
        volume = Volume(body((30, 28, 2), seed=3), np.eye(4))
        everything = make()(volume).array
        largest = make(largest_component=True)(volume).array
        whole = np.ones((3, 3, 3))
        pieces = [ndimage.label(everything == k, whole)[1] for k in (1, 2)]
        assert max(pieces) > 1  # or nothing is shown
        assert [ndimage.label(largest == k, whole)[1] for k in (1, 2)] == [min(p, 1) for p in pieces]
        assert (largest[largest > 0] == everything[largest > 0]).all()

    def test_post_processing_of_a_class_that_is_not_there(self, make):
        with pytest.raises(ConfigError, match="fill_holes: no class 'c'; there are a, b"):
            make(fill_holes=("c",))


class TestChannels:
    @pytest.mark.parametrize("channels", [2, 3])
    def test_two_and_three(self, make, channels):
        volume = Volume(np.stack([body((9, 8, 2), seed=s) for s in range(channels)], axis=-1), OBLIQUE)
        require_on_grid(make(channels=channels)(volume), volume)

    def test_equal_channels_are_one(self, make):
        one = body((17, 14, 2))
        single = make()(Volume(one, np.eye(4)))
        assert np.array_equal(make(channels=3)(Volume(np.stack([one] * 3, axis=-1), np.eye(4))).array, single.array)

    @pytest.mark.parametrize(("given", "wanted"), [(1, 2), (2, 1), (3, 2)])
    def test_a_wrong_number_is_an_error_that_names_both(self, make, given, wanted):
        array = body((5, 6, 2)) if given == 1 else np.stack([body((5, 6, 2))] * given, axis=-1)
        with pytest.raises(VolumeError, match=f"the volume has {given} channel.*the plan has {wanted}"):
            make(channels=wanted)(Volume(array, np.eye(4)))


class TestDirection:
    def test_both_is_the_mean_of_the_logits(self, make, monkeypatch):
        """Seen at `argmax_mask`, the last place where there are logits."""
        seen = {}
        slices = body((5, 1, 20, 24)) / 200
        for direction in ("forward", "backward", "both"):
            kept = seen.setdefault(direction, [])
            monkeypatch.setattr(
                "sam2_3dmed.inference.logits_to_mask.argmax_mask",
                lambda logits, height, width, values, kept=kept: (
                    kept.append(logits) or torch.zeros(height, width).byte()
                ),
            )
            make(direction=direction).predict_slices(slices)
        forward, backward, both = (torch.stack(seen[d]) for d in ("forward", "backward", "both"))
        assert not torch.allclose(forward, backward, atol=0.01)
        torch.testing.assert_close(both, (forward + backward) / 2, atol=1e-4, rtol=1e-4)

    def test_backward_is_forward_through_the_reversed_stack(self, make):
        slices = body((3, 1, 20, 24)) / 200
        backward = make(direction="backward").predict_slices(slices)
        assert np.array_equal(backward, make().predict_slices(slices[::-1])[::-1])


@pytest.mark.parametrize("axis", ["axial", "coronal"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_probabilities_agree_with_the_mask(make, tmp_path, axis, direction):
    volume = Volume(body((17, 14, 5)), OBLIQUE)
    predictor = make(axis=axis, direction=direction)
    mask = predictor(volume, probabilities=tmp_path / "new" / "case")
    assert np.array_equal(mask.array, predictor(volume).array)
    found = [Volume.read(tmp_path / "new" / f"case_{name}.nii.gz") for name in "ab"]
    for probability in found:
        np.testing.assert_allclose(probability.affine, volume.affine, atol=1e-4)
    stacked = np.stack([np.full(volume.shape, 0.5), *(probability.array for probability in found)])
    likely = np.sort(stacked, axis=0)
    plain = likely[-1] - likely[-2] > 1.5 / 255  # rounding may decide the others
    assert plain.mean() > 0.5
    assert np.array_equal(stacked.argmax(axis=0)[plain], mask.array[plain])


def test_auxiliary_outputs_beside_probabilities(make, tmp_path):
    volume = Volume(body((17, 14, 2)), np.eye(4))
    mask, auxiliary = make().with_auxiliary(volume, probabilities=tmp_path / "case")
    assert np.array_equal(mask.array, make()(volume).array)
    assert auxiliary.boundary.shape == volume.shape
    assert sorted(file.name for file in tmp_path.iterdir()) == ["case_a.nii.gz", "case_b.nii.gz"]


def test_the_mask_lies_in_memory_as_the_volume_does(make):
    for array in (body((9, 8, 2)), np.asfortranarray(body((9, 8, 2)))):
        assert make()(Volume(array, OBLIQUE)).array.flags.f_contiguous == array.flags.f_contiguous


def test_predicting_leaves_no_gradients_and_eval_mode(make):
    predictor = make()
    predictor.network.train()
    predictor.predict_slices(body((2, 1, 10, 10)))
    assert not predictor.network.training
    assert all(p.grad is None for p in predictor.network.parameters())


def test_bf16_gives_nearly_the_same(make):
    slices = body((3, 1, 30, 30)) / 200
    exact, rough = make().predict_slices(slices), make(precision="bf16").predict_slices(slices)
    assert (exact == rough).mean() > 0.9


class TestProgress:
    """Each slice is reported, and a set event ends the prediction after the slice under way."""

    VOLUME = Volume(body((9, 8, 7)), np.eye(4))

    @pytest.mark.parametrize("mode", ["slabs", "stream"])
    def test_after_each_slice(self, make, mode):
        seen = []
        mask = make(mode=mode)(self.VOLUME, on_slice=lambda *state: seen.append(state))
        assert seen == [(done, 7) for done in range(1, 8)]
        assert np.array_equal(mask.array, make(mode=mode)(self.VOLUME).array)

    @pytest.mark.parametrize("direction", ["forward", "both"])
    def test_cancelled_from_another_thread(self, make, tmp_path, direction):
        cancel, asked, seen = threading.Event(), threading.Event(), []

        def canceller():
            assert asked.wait(60)
            cancel.set()

        def on_slice(done, total):
            seen.append(done)
            asked.set()
            thread.join()

        thread = threading.Thread(target=canceller)
        thread.start()
        with pytest.raises(Cancelled, match="the prediction was cancelled"):
            make(direction=direction)(self.VOLUME, probabilities=tmp_path / "case", on_slice=on_slice, cancel=cancel)
        assert seen == [1]
        assert list(tmp_path.iterdir()) == []  # no half of a file of probabilities

    def test_cancelled_before_it_begins(self, make):
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            make().with_auxiliary(self.VOLUME, cancel=cancel)
