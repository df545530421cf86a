"""Augmentation: one draw a slab, image and label together, and maps that match their names."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from sam2_3dmed.config import AugmentationConfig
from sam2_3dmed.data.augment import (
    SlabAugmentation,
    affine_matrix,
    gaussian_blur,
    mosaic,
    resize,
    resize_labels,
    sampling_grid,
)
from sam2_3dmed.encoders.image_encoder import ImageEncoder

NOTHING = {"horizontal_flip": 0, "affine": 0, "noise": 0, "blur": 0, "mosaic": 0, "intensity": 0}
EVERYTHING = AugmentationConfig(
    horizontal_flip=0.5,
    affine=1,
    scale=0.2,
    elastic=0.05,
    noise=1,
    blur=1,
    mosaic=0.3,
    intensity=0.2,
    blur_sigma=(0.1, 2),
)


def augment(size, image, labels, seed=0, **config):
    return SlabAugmentation(AugmentationConfig(**{**NOTHING, **config}), size)(
        image, labels, np.random.default_rng(seed)
    )


def disc(height, width, radius_x, radius_y, centre=(0.0, 0.0)):
    """A label (1, H, W) with an ellipse, in pixels from the centre (x, y)."""
    y, x = np.mgrid[:height, :width]
    y, x = y - (height - 1) / 2 - centre[1], x - (width - 1) / 2 - centre[0]
    return torch.from_numpy(((x / radius_x) ** 2 + (y / radius_y) ** 2 <= 1)[None].astype(np.int32))


def as_image(labels):
    return labels.unsqueeze(1).float()


def smooth(height, width, depth=1):
    """(D, 1, H, W) without detail finer than a few pixels, in [0, 1]."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((depth, 1, height, width)), (0, 0, 4, 4))
    return torch.from_numpy(((noise - noise.min()) / np.ptp(noise)).astype(np.float32))


class TestResize:
    @pytest.mark.parametrize(("height", "width"), [(20, 33), (90, 40), (64, 64)])
    def test_nothing_drawn_is_the_encoders_own_resize(self, height, width):
        """Training and prediction must bring a slice to H x W in the same way."""
        image = smooth(height, width, depth=3)
        encoder = ImageEncoder(torch.nn.Identity(), 64)
        ours, _ = augment(64, image, torch.zeros(3, height, width, dtype=torch.int32))
        theirs = encoder.prepare(image.unsqueeze(0))[0, :, :1] * encoder.std[0] + encoder.mean[0]
        torch.testing.assert_close(ours, theirs)

    def test_labels_keep_their_values(self):
        labels = torch.arange(6).view(1, 2, 3)
        assert resize_labels(labels, 6)[0].tolist() == [[0, 0, 1, 1, 2, 2]] * 3 + [[3, 3, 4, 4, 5, 5]] * 3

    def test_labels_and_image_shrink_about_the_same_centre(self):
        labels = disc(96, 48, 15, 30, centre=(5, -7))
        image = resize(as_image(labels), 32)
        assert ((image[:, 0] > 0.5) == (resize_labels(labels, 32) > 0)).float().mean() > 0.97


class TestGeometry:
    @pytest.mark.parametrize("seed", range(6))
    def test_image_and_label_move_together(self, seed):
        labels = disc(70, 50, 12, 22, centre=(4, -8))
        config = {"horizontal_flip": 0.5, "affine": 1, "scale": 0.2}
        image, moved = augment(64, as_image(labels), labels, seed, **config)
        drawn = image[:, 0] > 0.5
        overlap = 2 * (drawn & (moved > 0)).sum() / (drawn.sum() + (moved > 0).sum())
        assert overlap > 0.97
        assert moved.dtype == labels.dtype
        assert set(moved.unique().tolist()) == {0, 1}

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("affine", [0, 1])
    def test_an_elastic_deformation_moves_image_and_label_together(self, seed, affine):
        labels = disc(70, 50, 12, 22, centre=(4, -8)).expand(3, -1, -1)
        config = {"affine": affine, "rotation_degrees": 0, "shear_degrees": 0}
        plain = augment(64, as_image(labels), labels, seed, **config)[1]
        image, moved = augment(64, as_image(labels), labels, seed, **config, elastic=0.1)
        drawn = image[:, 0] > 0.5
        assert 2 * (drawn & (moved > 0)).sum() / (drawn.sum() + (moved > 0).sum()) > 0.97
        assert (moved != plain).any()
        assert (moved == moved[:1]).all()  # the same for all slices
        assert set(moved.unique().tolist()) == {0, 1}

    @pytest.mark.parametrize("shape", [(20, 31), (100, 70)])
    def test_a_flip_alone_is_the_mirror_image_to_the_edge(self, shape):
        image, labels = smooth(*shape), disc(*shape, 5, 8, centre=(3, 1))
        flipped, flipped_labels = augment(64, image, labels, horizontal_flip=1)
        torch.testing.assert_close(flipped, resize(image, 64).flip(-1))
        assert torch.equal(flipped_labels, resize_labels(labels.flip(-1), 64))

    def test_an_affine_map_of_nothing_is_the_resize_away_from_the_edge(self):
        image = smooth(40, 30)
        labels = disc(40, 30, 8, 12)
        moved, moved_labels = augment(64, image, labels, affine=1, rotation_degrees=0, shear_degrees=0)
        torch.testing.assert_close(moved[..., 2:-2, 2:-2], resize(image, 64)[..., 2:-2, 2:-2], atol=1e-5, rtol=0)
        assert (moved_labels == resize_labels(labels, 64)).float().mean() > 0.98

    @pytest.mark.parametrize("shape", [(64, 64), (80, 48)])
    def test_the_map_is_scipys(self, shape):
        """`affine_transform` maps output to input indices as we do, with (row, column) where we have (x, y)."""
        height, width = shape
        matrix = affine_matrix(math.radians(20), math.radians(-12), math.radians(7), 1.15)
        image = smooth(height, width)
        grid = sampling_grid(matrix, height, width, 64)
        ours = torch.nn.functional.grid_sample(image, grid, align_corners=False)[0, 0].numpy()
        # the output's pixels of 64 x 64, seen as places on the input's grid
        to_native = np.diag([height / 64, width / 64])
        in_rows = matrix[::-1, ::-1] @ to_native
        centre_in, centre_out = (np.array(shape) - 1) / 2, np.array([31.5, 31.5])
        expected = ndimage.affine_transform(
            image[0, 0].numpy(), in_rows, centre_in - in_rows @ centre_out, (64, 64), order=1, cval=np.nan
        )
        known = np.isfinite(expected)
        assert known.mean() > 0.5
        np.testing.assert_allclose(ours[known], expected[known], atol=1e-4)

    def test_rotation_acts_in_square_pixels(self):
        """A bar 60 x 12 across a slice of 64 x 128 pixels, turned by 90 degrees, is 12 x 60: not 6 x 120."""
        bar = torch.zeros(1, 1, 64, 128)
        bar[..., 26:38, 34:94] = 1
        grid = sampling_grid(affine_matrix(math.pi / 2, 0, 0, 1), 64, 128, 128)
        turned = torch.nn.functional.grid_sample(bar, grid, align_corners=False)[0, 0] > 0.5
        rows, columns = torch.where(turned)
        assert int(rows.max() - rows.min()) + 1 == pytest.approx(120, abs=2)  # 60 pixels of half height
        assert int(columns.max() - columns.min()) + 1 == pytest.approx(12, abs=2)

    @pytest.mark.parametrize("degrees", [10, 33, 77])
    def test_a_circle_stays_one_where_pixels_are_not_square_after_resizing(self, degrees):
        circle = disc(48, 96, 15, 15)
        grid = sampling_grid(affine_matrix(math.radians(degrees), 0, 0, 1), 48, 96, 64)
        turned = torch.nn.functional.grid_sample(as_image(circle), grid, align_corners=False)[0, 0] > 0.5
        assert ((turned == (resize(as_image(circle), 64)[0, 0] > 0.5)).float().mean()) > 0.98

    def test_a_positive_zoom_enlarges(self):
        labels = disc(64, 64, 10, 10)
        grid = sampling_grid(affine_matrix(0, 0, 0, 1.5), 64, 64, 64)
        enlarged = torch.nn.functional.grid_sample(as_image(labels), grid, align_corners=False) > 0.5
        assert enlarged.sum() / labels.sum() == pytest.approx(2.25, rel=0.1)

    @pytest.mark.parametrize(("limit", "key"), [(25, "rotation_degrees"), (20, "shear_degrees")])
    def test_angles_stay_within_their_limits_and_go_both_ways(self, limit, key):
        """A vertical line's lean, measured from the image, is the angle."""
        line = disc(129, 129, 1.5, 60)
        config = {"affine": 1, "rotation_degrees": 0, "shear_degrees": 0, key: limit}
        leans = []
        for seed in range(40):
            image, _ = augment(129, as_image(line), line, seed, **config)
            rows, columns = torch.where(image[0, 0] > 0.5)
            slope = np.polyfit(rows.numpy() - 64.0, columns.numpy() - 64.0, 1)[0]
            leans.append(math.degrees(math.atan(slope)))
        assert max(np.abs(leans)) <= limit + 1
        assert min(leans) < -limit / 2
        assert max(leans) > limit / 2

    def test_what_comes_from_outside_is_dark_and_background(self):
        image, labels = torch.ones(1, 1, 64, 64), torch.ones(1, 64, 64, dtype=torch.int32)
        grid_corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
        moved, moved_labels = augment(64, image, labels, 3, affine=1, rotation_degrees=25, shear_degrees=20)
        empty = [bool(moved[0, 0, r, c] == 0 and moved_labels[0, r, c] == 0) for r, c in grid_corners]
        assert sum(empty) >= 2
        assert moved[0, 0, 32, 32] == 1
        assert moved_labels[0, 32, 32] == 1


class TestSlab:
    def test_equal_slices_stay_equal(self):
        image = smooth(50, 60).expand(5, 1, 50, 60)
        labels = disc(50, 60, 10, 15, centre=(6, 2)).expand(5, 50, 60)
        config = EVERYTHING.model_copy(update={"noise": 0.0})
        for seed in range(5):
            moved, moved_labels = SlabAugmentation(config, 64)(image, labels, np.random.default_rng(seed))
            assert torch.equal(moved, moved[:1].expand_as(moved))
            assert torch.equal(moved_labels, moved_labels[:1].expand_as(moved_labels))

    def test_noise_differs_from_slice_to_slice(self):
        image, _ = augment(32, torch.full((2, 1, 32, 32), 0.5), torch.zeros(2, 32, 32), noise=1)
        assert not torch.equal(image[0], image[1])

    @pytest.mark.parametrize("channels", [1, 2, 3])
    def test_shapes_and_types(self, channels):
        image = torch.rand(4, channels, 40, 30)
        moved, labels = SlabAugmentation(EVERYTHING, 64)(
            image, torch.zeros(4, 40, 30, dtype=torch.int32), np.random.default_rng(0)
        )
        assert (moved.shape, moved.dtype) == ((4, channels, 64, 64), torch.float32)
        assert (labels.shape, labels.dtype) == ((4, 64, 64), torch.int32)

    def test_channels_stay_apart(self):
        """A channel that is empty stays so; channels and slices share one pass of interpolation."""
        image = torch.zeros(3, 2, 40, 40)
        image[1, 1] = smooth(40, 40)[0, 0]
        moved, _ = augment(64, image, torch.zeros(3, 40, 40), affine=1, horizontal_flip=1, blur=1)
        assert moved[1, 1].max() > 0.5
        moved[1, 1] = 0
        assert not moved.any()

    def test_the_seed_decides(self):
        image, labels = torch.rand(3, 1, 40, 30), torch.randint(0, 3, (3, 40, 30))
        first, again, other = (
            SlabAugmentation(EVERYTHING, 64)(image, labels, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
        assert not torch.equal(first[0], other[0])

    def test_the_input_is_left_alone(self):
        image, labels = torch.rand(3, 1, 64, 64), torch.randint(0, 3, (3, 64, 64))
        before = image.clone(), labels.clone()
        for seed in range(4):
            SlabAugmentation(EVERYTHING, 64)(image, labels, np.random.default_rng(seed))
        assert torch.equal(image, before[0])
        assert torch.equal(labels, before[1])

    def test_all_but_noise_stays_in_zero_to_one(self):
        config = EVERYTHING.model_copy(update={"noise": 0.0})
        for seed in range(10):
            image = torch.from_numpy(np.random.default_rng(seed).random((2, 1, 90, 50), dtype=np.float32))
            moved, _ = SlabAugmentation(config, 64)(image, torch.zeros(2, 90, 50), np.random.default_rng(seed))
            assert moved.min() >= 0
            assert moved.max() <= 1 + 1e-6

    def test_each_chance_is_what_it_says(self):
        """With nothing else on, an unchanged slab is one that was spared."""
        image, labels = smooth(64, 64), torch.zeros(1, 64, 64)
        for key in ("horizontal_flip", "affine", "noise", "blur", "mosaic"):
            changes = [not torch.equal(augment(64, image, labels, seed, **{key: 0.3})[0], image) for seed in range(100)]
            assert 0.2 < np.mean(changes) < 0.4, key


class TestAppearance:
    def test_noise_has_a_standard_deviation_between_zero_and_its_limit(self):
        image = torch.full((2, 1, 64, 64), 0.5)
        noise = [augment(64, image, torch.zeros(2, 64, 64), seed, noise=1)[0] - image for seed in range(60)]
        deviations = np.array([float(n.std()) for n in noise])
        assert deviations.max() <= 0.1 * 1.03
        assert deviations.max() > 0.08
        assert deviations.min() < 0.02
        assert abs(float(torch.stack(noise).mean())) < 1e-3

    @pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
    def test_blur_is_scipys(self, sigma):
        image = torch.rand(2, 2, 40, 30)
        expected = ndimage.gaussian_filter(image.numpy(), (0, 0, sigma, sigma), mode="mirror", truncate=4.5)
        np.testing.assert_allclose(gaussian_blur(image, sigma).numpy(), expected, atol=2e-3)

    def test_blur_keeps_the_mean_and_lessens_the_spread(self):
        image = torch.rand(1, 1, 64, 64)
        blurred = gaussian_blur(image, 2.0)
        assert float(blurred.mean()) == pytest.approx(float(image.mean()), abs=5e-3)
        assert blurred.std() < 0.3 * image.std()

    def test_blur_wider_than_the_picture(self):
        assert gaussian_blur(torch.ones(1, 1, 4, 5), 10.0) == pytest.approx(1.0)

    def test_intensity_changes_values_but_not_order(self):
        image = torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64)
        changed, _ = augment(64, image, torch.zeros(1, 64, 64), intensity=0.3)
        assert not torch.allclose(changed, image, atol=0.01)
        assert (changed.flatten().diff() >= 0).all()


class TestMosaic:
    def test_by_hand(self):
        image = torch.arange(16.0).view(1, 1, 4, 4)
        assert mosaic(image)[0, 0].tolist() == [[0, 2, 0, 2], [8, 10, 8, 10]] * 2

    @pytest.mark.parametrize("shape", [(5, 7), (6, 5), (1, 1)])
    def test_odd_sizes_keep_their_shape(self, shape):
        image = torch.rand(2, 1, *shape)
        assert mosaic(image).shape == image.shape

    def test_every_tile_is_labelled_alike(self):
        labels = disc(64, 64, 9, 14, centre=(4, 3))
        image, tiled = augment(64, as_image(labels), labels, mosaic=1)
        quarters = [tiled[..., r : r + 32, c : c + 32] for r in (0, 32) for c in (0, 32)]
        assert all(torch.equal(quarter, quarters[0]) for quarter in quarters)
        assert float((quarters[0] > 0).sum()) == pytest.approx(float(labels.sum()) / 4, rel=0.1)
        assert torch.equal(image[:, 0] > 0.5, tiled > 0)
