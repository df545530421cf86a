"""CT-like phantoms of the abdomen as a data set in the Decathlon's layout, for the demo and for checks.

The targets are as in MSD Task07: a pancreas along a random curve and a tumour in it, in the pancreatic phase of the
contrast agent, which the tumour takes up. Spleen, kidneys, bowel and vessels share their Hounsfield units, so that
only shape and place distinguish them.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sam2_3dmed.data import anatomy
from sam2_3dmed.data.anatomy import Canvas, Field, grain, smooth_field
from sam2_3dmed.errors import DataError
from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.volume.volume import Volume

Shape = tuple[int, int, int]
"""Columns, rows, axial slices, on the canonical (RAS) grid."""

PHANTOM_LABELS = {1: "pancreas", 2: "tumour"}
PHANTOM_SHAPE = (96, 96, 28)
ORIENTATIONS = ("RAS", "LPS", "LAS", "ASR")
"""Used in turn, as scanners and converters leave all kinds; in "ASR" the slices lie along the second axis."""

_SUBSLICES = 3
_MIN_HU, _MAX_HU = -1024, 3071


def make_phantom_case(
    rng: np.random.Generator, *, shape: Shape = PHANTOM_SHAPE, orientation: str | None = None
) -> tuple[Volume, Volume]:
    """One abdominal CT and its label (0 background, 1 pancreas, 2 tumour), drawn from rng.

    Args:
        orientation: axis codes of the returned arrays, such as "LPS"; drawn from ORIENTATIONS if None.

    Returns:
        Image int16 in HU and label uint8 on one grid: 1.5-2.2 mm in plane, 4-6 mm between slices, tilted by up to 6
        degrees about each axis.

    Raises:
        DataError: the shape is too small to hold the organs.
    """
    _check_shape(shape, 12)
    codes = orientation or str(rng.choice(ORIENTATIONS))
    in_plane = rng.uniform(1.5, 2.2)
    # The height covered follows the body's size, so that the organs are never cut off.
    between = float(np.clip(rng.uniform(0.73, 0.83) * in_plane * min(shape[:2]) / shape[2], 4.0, 6.0))
    spacing_mm = np.array([in_plane, in_plane, between])
    rotation = _small_rotation(rng)
    canvas = _blank_canvas(rng, shape, spacing_mm, rotation)
    cavity = anatomy.paint_trunk(canvas, rng)  # from the outside in, the targets last
    anatomy.paint_upper_organs(canvas, rng, cavity)
    anatomy.paint_spine(canvas, rng)
    anatomy.paint_bowel(canvas, rng, cavity)
    pancreas, tumour = anatomy.paint_pancreas(canvas, rng)
    image = _scan(canvas.hu, rng)
    label = _label(canvas.coverage(pancreas), canvas.coverage(tumour))
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing_mm
    affine[:3, 3] = rng.uniform(-40, 40, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return _oriented(image, affine, codes), _oriented(label, affine, codes)


def write_phantom_dataset(
    folder: Path,
    *,
    num_cases: int,
    seed: int,
    shape: Shape = PHANTOM_SHAPE,
    on_case: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set in MSD's layout: dataset.json, imagesTr/phantom_000.nii.gz, ..., labelsTr. Returns its folder.

    The same arguments give the same arrays, and a case does not depend on the number of cases. The number of slices
    varies by up to 2 around shape[2]. A complete data set is not written again.

    Args:
        on_case: called with (cases done, num_cases) after each.

    Raises:
        DataError: num_cases < 1, the shape is too small, or the folder holds another data set.
    """
    if num_cases < 1:
        raise DataError(f"a phantom data set needs at least 1 case, not {num_cases}")
    _check_shape(shape, 14)
    file = folder / "dataset.json"
    content = _dataset_json(num_cases, seed, shape)
    if file.exists():
        if file.read_text(encoding="utf-8") != content:
            raise DataError(f"{file}: holds another data set; choose an empty folder")
        return folder
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)

    def write(index: int) -> None:
        rng = np.random.default_rng([seed, index])
        slices = shape[2] + int(rng.integers(-2, 3))
        orientation = ORIENTATIONS[index % len(ORIENTATIONS)]
        image, label = make_phantom_case(rng, shape=(*shape[:2], slices), orientation=orientation)
        image.write(folder / "imagesTr" / _file_name(index))
        label.write(folder / "labelsTr" / _file_name(index))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(write, range(num_cases)), start=1):
            if on_case is not None:
                on_case(done, num_cases)
    write_text(file, content)
    return folder


def _check_shape(shape: Shape, min_slices: int) -> None:
    if min(shape[:2]) < 48 or shape[2] < min_slices:
        given = " x ".join(str(size) for size in shape)
        raise DataError(f"a phantom needs a shape of at least 48 x 48 x {min_slices}, not {given}")


def _file_name(index: int) -> str:
    return f"phantom_{index:03d}.nii.gz"


def _dataset_json(num_cases: int, seed: int, shape: Shape) -> str:
    """The text of dataset.json, keys as in the Decathlon."""
    names = [_file_name(index) for index in range(num_cases)]
    content = {
        "name": "Phantom",
        "description": f"Simulated abdominal CT, {' x '.join(map(str, shape))} voxels or so, seed {seed}",
        "reference": "sam2-3dmed",
        "licence": "Apache-2.0",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(value): name for value, name in PHANTOM_LABELS.items()}},
        "numTraining": num_cases,
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
    }
    return json.dumps(content, indent=2) + "\n"


def _small_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Up to 6 degrees about each axis; none in a quarter of the cases."""
    angles = np.deg2rad(np.clip(rng.normal(0, 2.5, 3), -6, 6)) * (rng.random() < 0.75)
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        turn, others = np.eye(3), [(axis + 1) % 3, (axis + 2) % 3]
        turn[np.ix_(others, others)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        rotation = turn @ rotation
    return rotation


def _blank_canvas(
    rng: np.random.Generator, shape: Shape, spacing_mm: NDArray[np.float64], rotation: NDArray[np.float64]
) -> Canvas:
    """Air, on several thin slices to a thick one; coordinates turned to the patient's and gently warped."""
    fine = (*shape[:2], shape[2] * _SUBSLICES)
    half_width_mm = float(0.5 * min(shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]))
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(fine, spacing_mm / (1, 1, _SUBSLICES), strict=True)]
    i, j, k = np.meshgrid(*(axis / half_width_mm for axis in axes), indexing="ij", sparse=True)
    shift = rng.normal(0, 0.025, 3)
    scale = rng.uniform(1.06, 1.16)
    coordinates = []
    for row, offset in zip(rotation, shift, strict=True):
        straight = (row[0] * i + row[1] * j + row[2] * k - offset) / scale
        coordinates.append(straight.astype(np.float32) + 0.022 * smooth_field(rng, fine, (5, 5, 4)))
    x, y, z = coordinates
    return Canvas(
        x,
        y,
        z,
        hu=np.full(fine, -1000, dtype=np.float32),
        fine_grain=grain(rng, fine, 1.2),
        coarse_grain=grain(rng, fine, 4.0),
        voxel=2 / min(shape[:2]),
        half_height=0.5 * shape[2] * float(spacing_mm[2]) / half_width_mm,
    )


def _thick(fine: Field) -> Field:
    """Thin slices (X, Y, n * _SUBSLICES) averaged to thick ones (X, Y, n): their partial volume."""
    return np.asarray(fine.reshape(*fine.shape[:2], -1, _SUBSLICES).mean(axis=3))


def _scan(fine_hu: Field, rng: np.random.Generator) -> NDArray[np.int16]:
    """The image of a scanner: thick slices, blur in plane, correlated noise, an offset and a gain."""
    hu = gaussian_filter(_thick(fine_hu), (0.55, 0.55, 0))
    noise = 0.8 * grain(rng, hu.shape, (0.6, 0.6, 0)) + 0.6 * grain(rng, hu.shape, (1.2, 1.2, 0))
    # More noise where the rays have crossed more tissue.
    tissue = gaussian_filter((hu > -300).astype(np.float32), (8, 8, 0))
    hu = hu + rng.uniform(8, 12) * (0.5 + 0.6 * tissue) * noise
    hu = hu * rng.uniform(0.98, 1.02) + rng.normal(0, 4)
    scanned: NDArray[np.int16] = np.clip(np.rint(hu), _MIN_HU, _MAX_HU).astype(np.int16)
    return scanned


def _label(pancreas: Field, tumour: Field) -> NDArray[np.uint8]:
    """1 where at least half of a voxel is pancreas or tumour, 2 where the tumour is at least half of that."""
    organ, lesion = _thick(pancreas), _thick(tumour)
    return np.where(organ >= 0.5, np.where(lesion >= 0.5 * organ, 2, 1), 0).astype(np.uint8)


def _oriented(array: NDArray[Any], affine: NDArray[np.float64], codes: str) -> Volume:
    """A volume whose RAS array and affine are brought to the given axis codes."""
    from nibabel import Nifti1Image, orientations  # slow to import

    wanted = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    turned = Nifti1Image(array, affine).as_reoriented(wanted)
    return Volume(np.ascontiguousarray(turned.dataobj), turned.affine)
