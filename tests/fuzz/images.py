"""Images and labels, whose second readers are nibabel and a few lines for NRRD and MetaImage."""

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK

from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.nrrd import write_segmentation_nrrd
from sam2_3dmed.volume.volume import Volume

from .kinds import Kind

SHAPE = (5, 4, 3)
AFFINE = np.array([[-0.7, 0, 0, 9], [0, 0.8, 0, -5], [0, 0, 2.5, 3], [0, 0, 0, 1]])
_TYPES = {"MET_SHORT": "i2", "MET_UCHAR": "u1", "MET_FLOAT": "f4", "MET_USHORT": "u2", "MET_INT": "i4"}
_NRRD_TYPES = {
    "short": "i2",
    "signed short": "i2",
    "int16": "i2",
    "int16_t": "i2",
    "unsigned char": "u1",
    "uint8": "u1",
}
_NRRD_TYPES |= {"float": "f4", "double": "f8", "uchar": "u1", "uint8_t": "u1"}


def voxels(dtype: str = "<i2", highest: int = 3000) -> np.ndarray:
    return (np.arange(np.prod(SHAPE)) * 37 % highest).reshape(SHAPE).astype(dtype)


def label() -> Volume:
    return Volume(voxels("<u1", 3), AFFINE)


def check_volume(volume: Volume) -> None:
    array, affine = volume.array, volume.affine
    assert array.ndim == 3 or array.shape[3] in (2, 3)
    assert array.size
    assert array.dtype.isnative
    assert array.dtype.kind in "iuf"
    assert np.isfinite(array).all()
    assert np.isfinite(affine).all()
    assert abs(np.linalg.det(affine[:3, :3])) > 0
    assert np.isfinite(volume.spacing_mm).all()
    assert min(volume.spacing_mm) > 0
    assert volume.orientation


def check_nifti(folder: Path, volume: Volume, whole: Volume, file: str, rounding: float = 0.0) -> None:
    """Where nibabel reads the file, too, it has these voxels and this affine."""
    check_volume(volume)
    try:
        image = nib.load(folder / file)
        array, affine = np.asanyarray(image.dataobj), image.affine
        header = read_header(folder / file)
        if not (0 <= header["qform_code"] <= 5 and 0 <= header["sform_code"] <= 5):
            return  # nibabel takes a code that it does not know for none
        if header["vox_offset"] < len(header.binaryblock) and header.is_single:
            return  # nibabel reads the header as voxels
        unit = {1: 1000.0, 3: 0.001}.get(int(image.header["xyzt_units"]) & 7, 1.0)
    except Exception:  # another reader may refuse a damaged file in any way
        return
    if array.size != volume.array.size or not np.isfinite(array.astype(float)).all():
        return
    expected = array.reshape(volume.array.shape).astype(float)
    assert np.allclose(volume.array, expected, rtol=1e-5, atol=rounding + 1e-5 * np.abs(expected).max()), "voxels"
    if np.isfinite(affine).all():
        assert np.allclose(volume.affine, np.diag([unit, unit, unit, 1]) @ affine, rtol=1e-5), "affine"


def read_header(file: Path) -> Any:
    """The header as it is in the file; nibabel repairs it when it reads an image."""
    content = file.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    kinds = {b"n+1": nib.Nifti1Header, b"ni1": nib.nifti1.Nifti1PairHeader}
    kind = kinds.get(content[344:347])
    return kind(content[:348], check=False) if kind else nib.Nifti2Header(content[:540], check=False)


def check_label(folder: Path, volume: Volume, whole: Volume, file: str) -> None:
    assert volume.array.dtype in (np.uint8, np.uint16)
    assert volume.array.ndim == 3
    assert volume.array.max() <= 2
    check_nifti(folder, volume, whole, file, rounding=1e-4)


def nifti(file: str, packing: str = "bytes", *, pair: bool = False, of: type = nib.Nifti1Image, **fields: Any) -> Kind:
    def make(folder: Path) -> None:
        image = of(voxels(), AFFINE)
        for name, value in fields.items():
            image.header[name] = value
        if pair:
            image = nib.Nifti1Pair(voxels(), AFFINE)
        plain = image.to_bytes() if not pair else None
        if plain is None:
            nib.save(image, folder / file)
        else:
            (folder / file).write_bytes(gzip.compress(plain, 1, mtime=0) if file.endswith(".gz") else plain)

    def read(folder: Path) -> Volume:
        return Volume.read(folder / file)

    return Kind(file, make, read, lambda *given: check_nifti(*given, file), packing)


def nifti_label() -> Kind:
    file = "label.nii.gz"

    def make(folder: Path) -> None:
        content = nib.Nifti1Image(label().array, AFFINE).to_bytes()
        (folder / file).write_bytes(gzip.compress(content, 1, mtime=0))

    return Kind(
        file, make, lambda folder: read_label(folder / file, (1, 2)), lambda *given: check_label(*given, file), "gzip"
    )


def itk(file: str, *, compressed: bool, packing: str = "bytes", mutated: str | None = None) -> Kind:
    def make(folder: Path) -> None:
        image = SimpleITK.GetImageFromArray(voxels().T)
        image.SetSpacing((0.7, 0.8, 2.5))
        image.SetOrigin((-9, 5, 3))
        SimpleITK.WriteImage(image, str(folder / file), useCompression=compressed)

    def read(folder: Path) -> Volume:
        return Volume.read(folder / file)

    def check(folder: Path, volume: Volume, whole: Volume) -> None:
        check_volume(volume)
        second = _nrrd if "nrrd" in file or file.endswith(".nhdr") else _meta_image
        expected = second(folder / file, whole)
        if expected is not None and expected.size == volume.array.size:
            assert np.array_equal(volume.array.ravel("F"), expected), "voxels"

    return Kind(mutated or file, make, read, check, packing)


def segmentation_nrrd() -> Kind:
    file = "mask.seg.nrrd"

    def make(folder: Path) -> None:
        write_segmentation_nrrd(label(), folder / file, {1: "liver", 2: "tumour"})

    def check(folder: Path, volume: Volume, whole: Volume) -> None:
        assert volume.array.max() <= 2
        expected = _nrrd(folder / file, whole)
        if expected is not None and expected.size == volume.array.size:
            assert np.array_equal(volume.array.ravel("F"), expected), "voxels"

    return Kind(file, make, lambda folder: read_label(folder / file, (1, 2)), check, "header and gzip")


def _nrrd(file: Path, whole: Volume) -> np.ndarray | None:
    """The voxels in the order of the file; None where this simple reader does not know what to do."""
    head, _, content = file.read_bytes().partition(b"\n\n")
    fields = dict(re.findall(r"^([a-z ]+): *(.*?)\r?$", head.decode("latin-1").lower(), re.MULTILINE))
    name = re.search(r"^data ?file: *(.*?)$", head.decode("latin-1"), re.MULTILINE)
    if name is not None:
        content = (file.parent / name[1]).read_bytes()
    dtype = _NRRD_TYPES.get(fields.get("type", ""))
    if dtype is None or {"line skip", "lineskip", "byte skip", "byteskip", "min", "max"} & fields.keys():
        return None
    try:
        if fields["encoding"] in ("gzip", "gz"):
            content = gzip.decompress(content)
        elif fields["encoding"] != "raw":
            return None
        order = ">" if fields.get("endian") == "big" else "<"
        return np.frombuffer(content, order + dtype)[: np.prod([int(n) for n in fields["sizes"].split()])]
    except (EOFError, OSError, zlib.error):  # the last bytes, of which ITK does not use all
        return whole.array.ravel("F")
    except Exception:  # as in `check_nifti`
        return None


def _meta_image(file: Path, whole: Volume) -> np.ndarray | None:
    """As `_nrrd`."""
    head, mark, content = file.read_bytes().partition(b"ElementDataFile = ")
    fields = dict(re.findall(r"^(\w+) *= *(.*?) *$", head.decode("latin-1"), re.MULTILINE))
    name, _, content = content.partition(b"\n")
    try:
        if name != b"LOCAL":
            content = (file.parent / name.decode()).read_bytes()
        dtype = _TYPES[fields["ElementType"]]
        if not mark or "HeaderSize" in fields or fields.get("BinaryData") != "True":
            return None
        if fields.get("CompressedData") == "True":
            content = zlib.decompressobj().decompress(content)
        order = ">" if fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB")) == "True" else "<"
        return np.frombuffer(content, order + dtype)[: np.prod([int(n) for n in fields["DimSize"].split()])]
    except zlib.error:
        raise AssertionError("the voxels are damaged") from None
    except Exception:  # as in `check_nifti`
        return None


KINDS = {
    "nifti": nifti("scan.nii"),
    "nifti-gz": nifti("scan.nii.gz", "gzip"),
    "nifti-2": nifti("scan.nii", of=nib.Nifti2Image),
    "nifti-scaled": nifti("scan.nii.gz", "gzip", scl_slope=2.0, scl_inter=-1024),
    "nifti-pair": nifti("scan.hdr", pair=True),
    "nifti-label": nifti_label(),
    "nrrd": itk("scan.nrrd", compressed=True, packing="header and gzip"),
    "nhdr": itk("scan.nhdr", compressed=False, packing="text"),
    "seg-nrrd": segmentation_nrrd(),
    "mha-plain": itk("scan.mha", compressed=False, packing="header and bytes"),
    "mha-compressed": itk("scan.mha", compressed=True),
    "mhd": itk("scan.mhd", compressed=False, packing="text"),
    "mhd-voxels": itk("scan.mhd", compressed=True, mutated="scan.zraw"),
}
