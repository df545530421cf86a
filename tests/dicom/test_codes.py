import json

import pytest

from sam2_3dmed.dicom.codes import UNKNOWN, Code, category_of, code_of, read_codes, write_codes
from sam2_3dmed.errors import DataError


@pytest.mark.parametrize(
    ("name", "value"),
    [("spleen", "78961009"), ("Pancreas", "15776009"), ("left_atrium", "82471001"), ("tumour", "108369006")],
)
def test_names_that_snomed_knows(name, value):
    assert code_of(name, {}).value == value


@pytest.mark.parametrize("name", ["GTV 1", "", "___", "class 7"])
def test_other_names_get_the_general_code(name):
    assert code_of(name, {}) == UNKNOWN


def test_a_given_code_goes_first():
    mine = Code("T-C3000", "SRT", "Spleen")
    assert code_of("spleen", {"spleen": mine}) == mine


def test_anatomy_and_what_grows_in_it():
    assert category_of("liver").value == "123037004"
    assert category_of("Liver tumour").value == "49755003"


def test_codes_of_a_data_set(tmp_path):
    file = tmp_path / "dataset.json"
    file.write_text(json.dumps({"labels": {}, "codes": {"spleen": ["78961009", "SCT", "Spleen"]}}))
    assert read_codes(file) == {"spleen": Code("78961009", "SCT", "Spleen")}
    file.write_text("{}")
    assert read_codes(file) == {}


@pytest.mark.parametrize("codes", [["spleen"], {"spleen": "SCT"}, {"spleen": ["1", "SCT", ""]}, {"spleen": [1, 2, 3]}])
def test_codes_of_another_form(tmp_path, codes):
    (tmp_path / "dataset.json").write_text(json.dumps({"codes": codes}))
    with pytest.raises(DataError, match=r'dataset\.json: "codes" must be like'):
        read_codes(tmp_path / "dataset.json")


@pytest.mark.parametrize("code", [["1", "S" * 17, "Spleen"], ["1", "SCT", "S" * 65]])
def test_codes_too_long_for_dicom(tmp_path, code):
    write_codes(tmp_path / "dataset.json", {"fits": Code("1" * 40, "S" * 16, "S" * 64)})
    read_codes(tmp_path / "dataset.json")
    (tmp_path / "dataset.json").write_text(json.dumps({"codes": {"spleen": code}}))
    with pytest.raises(DataError, match=r"dataset\.json: the code of 'spleen' in .codes. is too long: at most 16"):
        read_codes(tmp_path / "dataset.json")


def test_what_is_written_is_read(tmp_path):
    codes = {"Größe": Code("1", "99LOCAL", "Größe"), "spleen": Code("78961009", "SCT", "Spleen")}
    write_codes(tmp_path / "codes.json", codes)
    assert read_codes(tmp_path / "codes.json") == codes


@pytest.mark.parametrize(("text", "message"), [("{", "broken JSON"), (None, "cannot be read")])
def test_no_usable_file(tmp_path, text, message):
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_codes(tmp_path / "dataset.json")
