"""DICOM: series, multi-frame files, annotations and zips. pydicom alone is the second reader."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless

from sam2_3dmed.data.dataset import read_case, read_dataset
from sam2_3dmed.dicom.prepare import prepare
from sam2_3dmed.dicom.segmentation import write_segmentation
from sam2_3dmed.dicom.series import choose_series
from sam2_3dmed.dicom.structures import write_structures
from sam2_3dmed.volume.volume import Volume

from .images import check_volume
from .kinds import Kind

SHAPE = (6, 5, 4)
WriteSeries = Callable[..., Any]


def stored() -> np.ndarray:
    return (np.arange(np.prod(SHAPE)) * 37 % 3000).reshape(SHAPE).astype(np.int16)


def with_fixed_values(file: Path) -> None:
    """Write a file again with UIDs, dates and versions that are the same each time."""
    dataset, uids = dcmread(file), {}

    def fix(dataset: Dataset) -> None:
        for element in dataset:
            if element.VR == "SQ":
                for item in element.value:
                    fix(item)
            elif element.VR == "UI" and str(element.value).startswith("1.2.826."):
                element.value = uids.setdefault(str(element.value), f"1.2.9.{len(uids)}")
            elif element.VR in ("DA", "TM"):
                element.value = {"DA": "20200101", "TM": "101010"}[element.VR]
            elif element.keyword in ("SoftwareVersions", "AlgorithmVersion"):
                element.value = "1"

    fix(dataset)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(file, enforce_file_format=True)


def make_series(folder: Path, write_series: WriteSeries, **changes: Any) -> None:
    write_series(folder, stored(), each=lambda place: {"SOPInstanceUID": f"1.2.3.4.{place}"}, **changes)


def make_multi_frame(folder: Path, write_series: WriteSeries) -> None:
    make_series(folder / "plain", write_series)
    planes = [dcmread(file) for file in sorted((folder / "plain").iterdir())]
    whole = dcmread(min((folder / "plain").iterdir()))
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept"):
        delattr(whole, keyword)
    whole.SharedFunctionalGroupsSequence = [
        _group(
            PlaneOrientationSequence={"ImageOrientationPatient": planes[0].ImageOrientationPatient},
            PixelMeasuresSequence={"PixelSpacing": planes[0].PixelSpacing, "SliceThickness": 2},
        )
    ]
    whole.PerFrameFunctionalGroupsSequence = [
        _group(
            PlanePositionSequence={"ImagePositionPatient": plane.ImagePositionPatient},
            PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": number},
        )
        for number, plane in enumerate(planes)
    ]
    whole.NumberOfFrames = len(planes)
    whole.PixelData = b"".join(plane.PixelData for plane in planes)
    whole.save_as(folder / "whole.dcm")
    for file in (folder / "plain").iterdir():
        file.unlink()
    (folder / "plain").rmdir()


def _group(**sequences: dict[str, Any]) -> Dataset:
    made = Dataset()
    for sequence, elements in sequences.items():
        item = Dataset()
        for keyword, value in elements.items():
            setattr(item, keyword, value)
        setattr(made, sequence, [item])
    return made


def make_zip(folder: Path, write_series: WriteSeries) -> None:
    make_series(folder / "study", write_series)
    with ZipFile(folder / "study.zip", "w") as archive:
        for file in sorted((folder / "study").iterdir()):
            archive.writestr(ZipInfo(f"study/{file.name}"), file.read_bytes())


def make_study(folder: Path, write_series: WriteSeries, write: Callable[..., object]) -> None:
    make_series(folder / "study" / "ct", write_series)
    series = choose_series(folder / "study" / "ct")
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:5, 1:4, :3], mask[2:4, 2:3, 1:2] = 1, 2
    file = folder / "study" / "annotation.dcm"
    codes = [{}] if write is write_segmentation else []
    write(Volume(mask, series.affine), series, file, {1: "liver", 2: "tumour"}, *codes)
    with_fixed_values(file)


def read_study(folder: Path) -> tuple[Volume, Volume]:
    """Image and label, as `prepare` makes a case of them."""
    out = folder / f"out{len(list(folder.iterdir()))}"
    _, failures = prepare(folder / "study", out, [("liver", 1), ("tumour", 2)])
    assert not failures
    image, label = read_case(read_dataset(out).cases[0], (1, 2))
    assert label is not None
    return image, label


def check_series(folder: Path, volume: Volume, whole: Volume) -> None:
    """Where pydicom reads all files of one size, too, they have these voxels."""
    check_volume(volume)
    try:
        slices = [values for file in sorted(folder.rglob("*.dcm")) for values in _slices(dcmread(file))]
        normal = np.cross(*slices[0][1])
        slices.sort(key=lambda item: float(item[0] @ normal))
        expected = np.stack([values for *_, values in slices], axis=-1)
    except Exception:  # another reader may refuse a damaged file in any way
        return
    if expected.shape == volume.array.shape:
        assert np.allclose(volume.array, expected, rtol=1e-5, atol=1e-3), "voxels"
        assert np.allclose(volume.affine[:3, 3], slices[0][0] * (-1, -1, 1), atol=1e-3), "origin"


def _slices(dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Position, directions and values (columns, rows) of each slice of a file."""
    pixels = dataset.pixel_array.astype(float)
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        values = pixels * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
        directions = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
        return [(np.array(dataset.ImagePositionPatient, float), directions, values.T)]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    directions = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    found = []
    for group, values in zip(dataset.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        transform = group.PixelValueTransformationSequence[0]
        values = values * float(transform.RescaleSlope) + float(transform.RescaleIntercept)
        found.append((np.array(group.PlanePositionSequence[0].ImagePositionPatient, float), directions, values.T))
    return found


def check_study(folder: Path, found: tuple[Volume, Volume], whole: tuple[Volume, Volume]) -> None:
    """The image is as it was. The label is on its grid, and where geometry and bits are as they were, so are masks."""
    image, label = found
    check_volume(image)
    assert np.array_equal(image.array, whole[0].array)
    assert label.shape == image.shape
    assert set(np.unique(label.array)) <= {0, 1, 2}


def read_series(folder: Path) -> Volume:
    return choose_series(folder).read()


def of(file: str, make: Callable[..., object], packing: str = "dicom", **changes: Any) -> Kind:
    return Kind(file, partial(make, **changes), read_series, check_series, packing, needs_series=True)


def study(write: Callable[..., object]) -> Kind:
    make = partial(make_study, write=write)
    return Kind("study/annotation.dcm", make, read_study, check_study, "dicom", needs_series=True)


KINDS = {
    "dicom-slice": of("007_1.dcm", make_series),
    "dicom-slice-bytes": of("007_1.dcm", make_series, "bytes"),
    "dicom-rle": of("007_1.dcm", make_series, syntax=RLELossless),
    "dicom-multi-frame": of("whole.dcm", make_multi_frame),
    "dicom-zip": Kind(
        "study.zip",
        make_zip,
        lambda folder: choose_series(folder / "study.zip").read(),
        lambda folder, volume, whole: check_volume(volume),
        "zip",
        needs_series=True,
    ),
    "dicom-seg": study(write_segmentation),
    "dicom-rtstruct": study(write_structures),
}
