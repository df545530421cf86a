"""Series in: exact voxels and place, every codec, choosing among several, and one line for each thing that is wrong."""

import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from sam2_3dmed.dicom.series import choose_series
from sam2_3dmed.errors import VolumeError
from sam2_3dmed.volume.volume import Volume, same_grid

OBLIQUE = np.linalg.qr(np.array([[2.0, 1, 0.3], [-0.4, 1, 0.5], [0.1, 0.7, 1]]))[0][:2]


def read_dicom(path, series_uid=None):
    return choose_series(Path(path), series_uid).read()


class TestVoxelsAndPlace:
    def test_known_by_hand(self, tmp_path, write_series):
        array = np.arange(2 * 3 * 2, dtype=np.int16).reshape(2, 3, 2)
        write_series(tmp_path, array, origin=(10, -20, 30), spacing_mm=(0.75, 0.5, 2))
        volume = read_dicom(tmp_path)
        assert np.array_equal(volume.array, array - 1024)
        assert volume.orientation == "LPS"
        # The second column of the third row of the second slice: 10 + 0.75, -20 + 2 * 0.5, 30 + 2 in LPS.
        assert (volume.affine @ (1, 2, 1, 1)).tolist() == [-10.75, 19.0, 32.0, 1.0]

    @pytest.mark.parametrize("directions", [((1, 0, 0), (0, 1, 0)), ((0, 1, 0), (0, 0, -1)), OBLIQUE])
    def test_any_orientation(self, tmp_path, write_series, stored_voxels, directions):
        affine = write_series(tmp_path, stored_voxels(), directions=directions)
        volume = read_dicom(tmp_path)
        assert np.array_equal(volume.array, stored_voxels() - 1024)
        assert same_grid(volume, Volume(volume.array, affine), 1e-5)

    @pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless])
    def test_compressed(self, tmp_path, write_series, stored_voxels, syntax):
        array = stored_voxels((64, 40, 3))
        write_series(tmp_path, array, syntax=syntax)
        assert np.array_equal(read_dicom(tmp_path).array, array - 1024)

    def test_deflated(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path, stored_voxels())
        for file in tmp_path.iterdir():
            dataset = dcmread(file)
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            dataset.save_as(file)
        assert np.array_equal(read_dicom(tmp_path).array, stored_voxels() - 1024)

    def test_deflated_pixels_that_do_not_fill_the_columns(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path, stored_voxels())
        for file in tmp_path.iterdir():
            dataset = dcmread(file)
            dataset.file_meta.TransferSyntaxUID, dataset.Columns = DeflatedExplicitVRLittleEndian, 5
            dataset.save_as(file)
        with pytest.raises(VolumeError, match=r"its pixels take 126 bytes, but its rows and columns hold 70"):
            read_dicom(tmp_path)

    @pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1])
    def test_a_codec_for_lossless_jpeg_is_there(self, syntax):
        from pydicom.pixels import get_decoder

        assert get_decoder(syntax).is_available

    def test_slope_and_intercept_of_each_slice(self, tmp_path, write_series, stored_voxels):
        write_series(
            tmp_path,
            stored_voxels(),
            each=lambda place: {"RescaleSlope": 0.5 + place, "RescaleIntercept": 0.25 * place},
        )
        volume = read_dicom(tmp_path)
        expected = stored_voxels() * (0.5 + np.arange(5)) + 0.25 * np.arange(5)
        assert volume.array.dtype == np.float32
        assert np.array_equal(volume.array, expected.astype(np.float32))

    def test_no_rescaling(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path, stored_voxels(), RescaleSlope=None, RescaleIntercept=None, Modality="MR")
        assert np.array_equal(read_dicom(tmp_path).array, stored_voxels())

    def test_values_beyond_int16(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path, stored_voxels(), RescaleSlope=100)
        volume = read_dicom(tmp_path)
        assert volume.array.dtype == np.int32
        assert np.array_equal(volume.array, stored_voxels().astype(int) * 100 - 1024)

    def test_what_stands_in_unused_bits_is_no_part_of_a_value(self, tmp_path, write_series):
        array = np.full((2, 2, 2), 0x7000 | 0x0123, np.int16)
        write_series(tmp_path, array, BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleIntercept=0)
        assert (read_dicom(tmp_path).array == 0x0123).all()

    def test_a_zip_and_a_tree_give_the_same(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path / "tree" / "a", stored_voxels())
        (tmp_path / "tree" / "notes.txt").write_text("no image")
        with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
            for file in (tmp_path / "tree" / "a").iterdir():
                archive.write(file, f"deep/{file.name}")
        for path in (tmp_path / "tree", tmp_path / "study.zip"):
            assert np.array_equal(read_dicom(path).array, stored_voxels() - 1024)

    @pytest.mark.parametrize("case", ["CT", "MR_T1"])
    def test_a_real_series_is_its_nifti(self, shared_data, case):
        folder = shared_data / "dicom" / "sarcoma_019" / case
        volume, nifti = read_dicom(folder), Volume.read(folder / "image.nii.gz")
        assert np.array_equal(volume.array, nifti.array)
        assert same_grid(volume, nifti)

    def test_real_jpeg_2000_against_another_reader(self, shared_data):
        """SimpleITK decodes and orders by itself; the label's y axis is stored flipped, in the same space."""
        import SimpleITK as sitk  # noqa: N813

        folder = shared_data / "dicom" / "abdomen_jpeg2000"
        volume, label = read_dicom(folder / "image"), Volume.read(folder / "label.nii.gz")
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "image"))
        other = sitk.GetArrayFromImage(sitk.ReadImage(names)).T
        assert np.array_equal(volume.array, other)
        assert (volume.orientation, label.orientation) == ("LPS", "LAS")
        flip = np.diag([1.0, -1, 1, 1])
        flip[1, 3] = label.shape[1] - 1
        assert same_grid(volume, Volume(label.array, label.affine @ flip))


class TestChoosing:
    @pytest.fixture
    def tree(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path / "thin", stored_voxels())
        write_series(tmp_path / "thick", stored_voxels()[:, :, ::2], SeriesInstanceUID="1.2.3.5")
        return tmp_path

    def test_several_are_listed(self, tree):
        with pytest.raises(VolumeError) as caught:
            read_dicom(tree)
        line = str(caught.value)
        assert line.startswith(f"{tree}: 2 series, choose one by its UID (--series): ")
        assert "1.2.3.4 (CT, thin, 5 slices)" in line
        assert "1.2.3.5 (CT, thin, 3 slices)" in line
        assert "\n" not in line

    def test_by_uid(self, tree):
        assert read_dicom(tree, "1.2.3.5").shape == (9, 7, 3)

    def test_a_uid_that_is_not_there(self, tree):
        with pytest.raises(VolumeError, match=r"no series 9\.9 here; there are 1\.2\.3\.[45] \(CT"):
            read_dicom(tree, "9.9")

    def test_the_only_one_that_makes_a_volume(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path / "a", stored_voxels())
        write_series(tmp_path / "localiser", stored_voxels()[:, :, :1], SeriesInstanceUID="1.2.3.6")
        assert choose_series(tmp_path).uid == "1.2.3.4"


class TestLeftOut:
    """What is in a series and no slice of it, each with a line."""

    def test_a_localizer(self, tmp_path, write_series, stored_voxels, caplog):
        write_series(tmp_path / "axial", stored_voxels(), ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
        scout = {"directions": ((1, 0, 0), (0, 0, -1)), "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
        write_series(tmp_path / "scout", stored_voxels((20, 30, 1)), **scout)
        assert np.array_equal(read_dicom(tmp_path).array, stored_voxels() - 1024)
        assert "1 localizers left out; the first: " in caplog.text

    def test_a_series_of_localizers_alone_is_read(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path, stored_voxels(), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        assert read_dicom(tmp_path).shape == (9, 7, 5)

    def test_the_same_file_twice(self, tmp_path, write_series, stored_voxels, caplog):
        write_series(tmp_path / "a", stored_voxels())
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert np.array_equal(read_dicom(tmp_path).array, stored_voxels() - 1024)
        assert "5 copies of files left out; the first: " in caplog.text

    def test_two_files_of_one_uid_and_other_pixels_are_doubled_slices(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path, stored_voxels())
        dataset = dcmread(tmp_path / "007_1.dcm")
        dataset.PixelData = dataset.PixelData[::-1]
        dataset.save_as(tmp_path / "other.dcm")
        with pytest.raises(VolumeError, match="1 doubled slices"):
            read_dicom(tmp_path)


def _without(place):
    return lambda here: None if here == place else {}


def _at_heights(*heights):
    return lambda place: {"ImagePositionPatient": [0.0, 0.0, float(heights[place])]}


def _at(here, position):
    return lambda place: {"ImagePositionPatient": position} if place == here else {}


def _one(**changes):
    return lambda place: changes if place == 3 else {}


BAD_SERIES = {
    "a slope of 0": ({"RescaleSlope": 0}, "its header cannot be used: its slope is 0"),
    "missing slices": ({"each": _without(2)}, r"1 missing slices: 4 mm between .* and .*, 2 mm elsewhere"),
    "uneven gaps": ({"each": _at_heights(0, 2, 4.7, 6, 8)}, r"uneven gaps between slices: 1\.3 to 2\.7 mm"),
    "doubled slices": ({"each": _at_heights(0, 2, 2, 4, 6)}, r"1 doubled slices: .*_1\.dcm and .*_2\.dcm lie at the"),
    "gantry tilt": (
        {"each": lambda z: {"ImagePositionPatient": [0.0, z * 2 * np.tan(np.radians(15)), 2.0 * z]}},
        r"gantry tilt: the stack leans by 15\.0 degrees",
    ),
    "mixed orientation": (
        {"each": lambda z: {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]} if z == 3 else {}},
        "slices of different orientations",
    ),
    "mixed spacing": ({"each": lambda z: {"PixelSpacing": [1 + z, 1]}}, "slices of different pixel spacings"),
    "no position": ({"ImagePositionPatient": None}, "no ImagePositionPatient"),
    "no orientation": ({"ImageOrientationPatient": None}, "no ImageOrientationPatient"),
    "a slice sideways": ({"each": _at(2, [13, -20, 34])}, r"_2\.dcm lies 3 mm sideways of the other slices"),
    "the last slice sideways": ({"each": _at(4, [10, -17, 38])}, r"_4\.dcm lies 3 mm sideways of the other slices"),
    "two patients": ({"each": _one(PatientID="P2")}, r"different patients \(PatientID\): .*_0\.dcm and .*_3\.dcm"),
    "two names": ({"each": _one(PatientName="Other^Case")}, r"slices of different patients \(PatientName\)"),
    "two frames of reference": ({"each": _one(FrameOfReferenceUID="1.9")}, "slices of different frames of reference"),
    "two modalities": ({"each": _one(Modality="MR")}, "slices of different modalities"),
    "a slope on some slices": ({"each": _one(RescaleSlope=None)}, "has a slope or intercept and .* has none, or the"),
    "an intercept on some": ({"each": _one(RescaleIntercept=None)}, "has a slope or intercept and .* has none, or the"),
    "a palette": ({"PhotometricInterpretation": "PALETTE COLOR"}, "a colour picture, not grey values"),
    "spacing zero": ({"PixelSpacing": [0, 1]}, "position, orientation or spacing is out of range"),
    "colour": ({"SamplesPerPixel": 3}, "a colour picture, not grey values"),
}


class TestBadInput:
    @pytest.mark.parametrize(("changes", "message"), BAD_SERIES.values(), ids=BAD_SERIES)
    def test_one_line_that_names_the_series(self, tmp_path, write_series, stored_voxels, changes, message):
        write_series(tmp_path, stored_voxels(), **changes)
        with pytest.raises(VolumeError, match=message) as caught:
            read_dicom(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: series 1.2.3.4 (CT, thin): ")
        assert "\n" not in str(caught.value)

    def test_mixed_sizes(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path / "a", stored_voxels())
        write_series(tmp_path / "b", stored_voxels((8, 7, 5)), origin=(10, -20, 130))
        with pytest.raises(VolumeError, match=r"1\.2\.3\.4 .*slices of different sizes: 8 x 7 and 9 x 7"):
            read_dicom(tmp_path)

    def test_slices_that_are_turned_against_each_other(self, tmp_path, write_series, stored_voxels):
        """By 0.0009, which moves the last of 1000 columns by 999 * 0.75 * 0.0009 = 0.674 mm."""
        turned = {"ImageOrientationPatient": [1, 0.0009, 0, -0.0009, 1, 0]}
        write_series(tmp_path, stored_voxels((1000, 2, 4)), each=lambda z: turned if z == 2 else {})
        with pytest.raises(VolumeError, match=r"_2\.dcm is turned against .*_0\.dcm: a corner lies 0\.674 mm away"):
            read_dicom(tmp_path)

    @pytest.mark.parametrize(("keyword", "written"), [("RescaleSlope", b"1.25"), ("RescaleIntercept", b"77.5")])
    @pytest.mark.parametrize("value", [b"nan ", b"inf "])
    def test_a_slope_or_intercept_that_is_not_finite(
        self, tmp_path, write_series, stored_voxels, keyword, written, value
    ):
        write_series(tmp_path, stored_voxels(), **{keyword: float(written)})
        file = sorted(tmp_path.iterdir())[2]
        file.write_bytes(file.read_bytes().replace(written, value))
        with pytest.raises(VolumeError, match=f"{file.name}: its header cannot be used: its slope .* is not finite"):
            read_dicom(tmp_path)

    @pytest.mark.parametrize("columns", [8, 5])
    def test_pixels_that_do_not_fill_the_columns(self, tmp_path, write_series, stored_voxels, columns):
        write_series(tmp_path, stored_voxels(), Columns=columns)
        with pytest.raises(
            VolumeError, match=f"its pixels take 126 bytes, but its rows and columns hold {14 * columns}"
        ):
            read_dicom(tmp_path)

    @pytest.mark.parametrize(
        ("syntax", "size"),
        [
            *((syntax, (63, 40)) for syntax in (JPEG2000Lossless, JPEGLSLossless, RLELossless)),
            *((syntax, (40, 64)) for syntax in (JPEG2000Lossless, JPEGLSLossless)),  # RLE has no size of its own
        ],
    )
    def test_compressed_pixels_of_another_size(self, tmp_path, write_series, stored_voxels, syntax, size):
        write_series(tmp_path, stored_voxels((64, 40, 2)), syntax=syntax)
        for file in tmp_path.iterdir():
            dataset = dcmread(file)
            dataset.Columns, dataset.Rows = size
            dataset.save_as(file)
        with pytest.raises(VolumeError, match="pixels"):
            read_dicom(tmp_path)

    def test_an_empty_folder(self, tmp_path):
        with pytest.raises(VolumeError, match="no DICOM file here"):
            read_dicom(tmp_path)

    def test_not_dicom(self, tmp_path):
        (tmp_path / "a.dcm").write_bytes(b"no DICOM" * 100)
        with pytest.raises(VolumeError, match="no DICOM file here"):
            read_dicom(tmp_path)

    def test_missing(self, tmp_path):
        with pytest.raises(VolumeError, match="no such file or folder"):
            read_dicom(tmp_path / "gone")

    @pytest.mark.parametrize("kept", [0.1, 0.2, 0.3, 0.95])
    def test_truncated(self, tmp_path, write_series, stored_voxels, kept):
        write_series(tmp_path, stored_voxels((32, 32, 3)))
        file = sorted(tmp_path.iterdir())[1]
        file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
        with pytest.raises(VolumeError, match=file.name):
            read_dicom(tmp_path)

    def test_a_damaged_zip(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path / "in", stored_voxels((32, 32, 3)))
        path = shutil.make_archive(str(tmp_path / "study"), "zip", tmp_path / "in")
        content = bytearray((tmp_path / "study.zip").read_bytes())
        content[300:400] = bytes(100)
        (tmp_path / "study.zip").write_bytes(content)
        with pytest.raises(VolumeError, match=r"study\.zip/.*cannot be read"):
            read_dicom(path)

    def test_a_codec_that_is_not_installed(self, tmp_path, write_series, stored_voxels, monkeypatch):
        from pydicom.pixels import get_decoder

        write_series(tmp_path, stored_voxels((64, 40, 1)), syntax=JPEG2000Lossless)
        monkeypatch.setattr(get_decoder(JPEG2000Lossless), "_available", {})
        with pytest.raises(
            VolumeError,
            match=r"pixels stored as 'JPEG 2000.* need a codec that is not installed; DICOM needs the extra: pip",
        ):
            read_dicom(tmp_path)

    def test_pixels_that_nothing_decodes(self, tmp_path, write_series, stored_voxels):
        write_series(tmp_path, stored_voxels()[:, :, :1])
        (file,) = tmp_path.iterdir()
        dataset = dcmread(file)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG2
        dataset.PixelData = encapsulate([b"\0" * 8])
        dataset.save_as(file)
        with pytest.raises(VolumeError, match="'MPEG2 Main Profile / Main Level' cannot be read"):
            read_dicom(tmp_path)

    def test_without_the_extra(self, tmp_path, write_series, stored_voxels, monkeypatch):
        write_series(tmp_path, stored_voxels())
        monkeypatch.setitem(sys.modules, "pydicom", None)
        with pytest.raises(VolumeError, match=r"DICOM needs the extra: pip install 'sam2-3dmed\[dicom\]'"):
            read_dicom(tmp_path)


class TestMultiFrame:
    def test_an_enhanced_file(self, tmp_path, write_series, stored_voxels):
        """One file with the slices in an order of its own, each with its place and its slope."""
        from pydicom import Dataset

        array = stored_voxels()
        affine = write_series(tmp_path / "plain", array)
        planes = sorted((dcmread(f) for f in (tmp_path / "plain").iterdir()), key=lambda d: d.SOPInstanceUID)
        whole = dcmread(next((tmp_path / "plain").iterdir()))
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept"):
            delattr(whole, keyword)

        def group(**sequences):
            made = Dataset()
            for sequence, elements in sequences.items():
                item = Dataset()
                for keyword, value in elements.items():
                    setattr(item, keyword, value)
                setattr(made, sequence, [item])
            return made

        first = planes[0]
        whole.SharedFunctionalGroupsSequence = [
            group(
                PlaneOrientationSequence={"ImageOrientationPatient": first.ImageOrientationPatient},
                PixelMeasuresSequence={"PixelSpacing": first.PixelSpacing, "SliceThickness": 2},
            )
        ]
        whole.PerFrameFunctionalGroupsSequence = [
            group(
                PlanePositionSequence={"ImagePositionPatient": plane.ImagePositionPatient},
                PixelValueTransformationSequence={"RescaleSlope": 1, "RescaleIntercept": number},
            )
            for number, plane in enumerate(planes)
        ]
        whole.NumberOfFrames = len(planes)
        whole.SOPInstanceUID = generate_uid()
        whole.PixelData = b"".join(plane.PixelData for plane in planes)
        whole.save_as(tmp_path / "whole.dcm")
        volume = read_dicom(tmp_path / "whole.dcm")
        places = [round((float(plane.ImagePositionPatient[2]) - 30) / 2) for plane in planes]
        for number, place in enumerate(places):
            assert np.array_equal(volume.array[:, :, place], array[:, :, place] + number)
        assert same_grid(volume, Volume(volume.array, affine), 1e-5)


def test_a_slope_that_makes_values_infinite(tmp_path, write_series, stored_voxels):
    write_series(tmp_path / "s", stored_voxels(), RescaleSlope="1e300")
    with pytest.raises(VolumeError, match="voxels are NaN or infinite"):
        read_dicom(tmp_path / "s")


@pytest.mark.parametrize("bits", [0, 65535])
def test_a_number_of_bits_that_no_value_has(tmp_path, write_series, bits):
    write_series(tmp_path / "s", np.zeros((4, 3, 2), np.int16), BitsStored=bits)
    with pytest.raises(VolumeError, match=f"its header cannot be used: its values have {bits} bits"):
        read_dicom(tmp_path / "s")
