"""Pictures show the right slices, the right way up, with the outlines of both masks."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from sam2_3dmed.report.panels import CLASS_COLOURS, WHITEST
from sam2_3dmed.report.planes import draw_cases
from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing
from sam2_3dmed.volume.volume import Volume

RAS = np.diag([2.0, 2.0, 5.0, 1.0])
LPI = np.diag([-2.0, -2.0, -5.0, 1.0])
GREY = 0.25
DRAWN_GREY = str(GREY * WHITEST)
BRIGHTEST = str(WHITEST)
SHAPE = (20, 30, 6)


def preprocessing(axis="axial"):
    return Preprocessing(axis, (Normalisation("fixed", 0, 1),))


def volume(value=0.0):
    """Full of `value`."""
    return Volume(np.full(SHAPE, value, dtype=np.float32), RAS)


def box(where, affine=RAS, value=1, background=0.0, shape=SHAPE):
    array = np.full(shape, background, dtype=np.float32)
    array[where] = value
    return Volume(array, affine)


def empty(affine=RAS, shape=SHAPE):
    return Volume(np.zeros(shape, dtype=np.uint8), affine)


def draw(path: Path, *pictures, labels=None, axis="axial", num_slices=1) -> np.ndarray:
    """The PNG's pixels, (rows, columns, 3) in [0, 1]."""
    draw_cases(pictures, labels or {1: "organ"}, preprocessing(axis), path, num_slices)
    return imread(path)[..., :3]


def near(pixels, colour, tolerance=0.02):
    return (np.abs(pixels - np.array(to_rgb(colour))) < tolerance).all(axis=-1)


def slice_area(pixels):
    """The part of a figure of one slice where the slice is; it is full of GREY."""
    grey = near(pixels, DRAWN_GREY, 0.01)
    rows, columns = np.flatnonzero(grey.sum(axis=1) > 30), np.flatnonzero(grey.sum(axis=0) > 30)
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


class TestOrientation:
    """Where the one bright voxel is drawn: as shares of the way down and to the right."""

    @pytest.mark.parametrize("affine", [RAS, LPI])
    @pytest.mark.parametrize(
        ("axis", "toward", "down", "right"),
        [
            ("axial", "R", 0.5, 0.0),
            ("axial", "L", 0.5, 1.0),
            ("axial", "A", 0.0, 0.5),
            ("axial", "P", 1.0, 0.5),
            ("coronal", "R", 0.5, 0.0),
            ("coronal", "S", 0.0, 0.5),
            ("coronal", "I", 1.0, 0.5),
            ("sagittal", "S", 0.0, 0.5),
            ("sagittal", "A", 0.5, 0.0),
        ],
    )
    def test_right_is_left_and_front_is_up(self, tmp_path, affine, axis, toward, down, right):
        shape = (21, 21, 21)
        place = [10, 10, 10]
        world = "RLAPSI".index(toward) // 2
        positive = toward in "RAS"
        place[world] = 20 if positive == (affine is RAS) else 0
        where = tuple(slice(p, p + 1) for p in place)
        image = box(where, affine, background=GREY, shape=shape)
        # the truth, small and at the middle, decides which slice is drawn; its outline is no full white
        prediction = box((slice(10, 11),) * 3, affine, shape=shape)
        pixels = slice_area(draw(tmp_path / "a.png", ("case", image, empty(affine, shape), prediction), axis=axis))
        rows, columns = np.where(near(pixels, BRIGHTEST))
        height, width = pixels.shape[:2]
        assert rows.mean() / height == pytest.approx(down, abs=0.06)
        assert columns.mean() / width == pytest.approx(right, abs=0.06)

    @pytest.mark.parametrize(("axis", "ratio"), [("axial", 60 / 40), ("coronal", 30 / 40), ("sagittal", 30 / 60)])
    def test_millimetres_are_square(self, tmp_path, axis, ratio):
        """20 x 30 x 6 voxels of 2 x 2 x 5 mm."""
        image = volume(value=GREY)
        pixels = slice_area(draw(tmp_path / "a.png", ("case", image, empty(), empty()), axis=axis))
        assert pixels.shape[0] / pixels.shape[1] == pytest.approx(ratio, rel=0.03)


class TestOutlines:
    BLOCK = (slice(5, 15), slice(10, 20), slice(2, 4))

    def test_the_models_is_in_its_class_colour_and_the_truths_white(self, tmp_path):
        image = volume(value=GREY)
        labels = {3: "organ", 300: "tumour"}
        for number, value in enumerate(labels):
            block = box(self.BLOCK, value=value)
            pixels = slice_area(draw(tmp_path / "p.png", ("case", image, empty(), block), labels=labels))
            assert near(pixels, CLASS_COLOURS[number], 0.1).sum() > 100
            assert not near(pixels, CLASS_COLOURS[1 - number], 0.1).any()
            assert not near(pixels, "white", 0.1).any()
            pixels = slice_area(draw(tmp_path / "t.png", ("case", image, block, empty()), labels=labels))
            assert near(pixels, "white", 0.1).sum() > 50
            assert not near(pixels, CLASS_COLOURS[number], 0.1).any()

    def test_it_runs_round_the_block(self, tmp_path):
        picture = ("case", volume(value=GREY), empty(), box(self.BLOCK))
        pixels = slice_area(draw(tmp_path / "p.png", picture))
        rows, columns = np.where(near(pixels, CLASS_COLOURS[0], 0.1))
        height, width = pixels.shape[:2]
        # A 10 to 20 of 30 from below, R 5 to 15 of 20 from the right
        assert [rows.min() / height, rows.max() / height] == pytest.approx([1 / 3, 2 / 3], abs=0.03)
        assert [columns.min() / width, columns.max() / width] == pytest.approx([0.25, 0.75], abs=0.03)

    def test_a_mask_that_reaches_the_edge_is_closed_there(self, tmp_path):
        picture = ("case", volume(value=GREY), empty(), box((slice(None), slice(None), slice(None))))
        draw(tmp_path / "p.png", picture)
        assert near(imread(tmp_path / "p.png")[..., :3], CLASS_COLOURS[0], 0.1).sum() > 1000


class TestSlices:
    @pytest.mark.parametrize("shape", [(8, 9, 1), (8, 9, 3)])
    def test_fewer_than_there_are_places(self, tmp_path, shape):
        image = Volume(np.zeros(shape, dtype=np.int16), RAS)
        pixels = draw(tmp_path / "a.png", ("case", image, empty(shape=shape), empty(shape=shape)), num_slices=4)
        assert pixels.size

    def test_slices_with_foreground_are_chosen(self, tmp_path):
        """Slice 4 alone is bright, and alone holds the truth: all that is drawn is bright."""
        bright = box((slice(None), slice(None), slice(4, 5)), value=GREY)
        truth = box((slice(8, 12), slice(8, 12), slice(4, 5)))
        pixels = draw(tmp_path / "a.png", ("case", bright, truth, empty()), num_slices=3)
        assert near(pixels, DRAWN_GREY, 0.01).sum() > 20_000
        assert near(pixels, "black", 0.01).sum() < 2_000

    def test_a_row_a_case(self, tmp_path):
        picture = ("case", volume(value=GREY), empty(), empty())
        one, three = (near(draw(tmp_path / f"{n}.png", *[picture] * n), DRAWN_GREY, 0.01).sum() for n in (1, 3))
        assert three == pytest.approx(3 * one, rel=0.25)


def test_only_the_first_channel_is_drawn(tmp_path):
    first = volume(value=GREY).array
    image = Volume(np.stack([first, np.ones_like(first)], axis=-1), RAS)
    two = Preprocessing("axial", (Normalisation("fixed", 0, 1),) * 2)
    draw_cases([("case", image, empty(), empty())], {1: "organ"}, two, tmp_path / "a.png", 1)
    assert slice_area(imread(tmp_path / "a.png")[..., :3]).size


def test_the_folder_is_made(tmp_path):
    draw(tmp_path / "new" / "deep" / "a.png", ("case", volume(), empty(), empty()))
    assert (tmp_path / "new" / "deep" / "a.png").is_file()
