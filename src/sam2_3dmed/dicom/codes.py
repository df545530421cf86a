"""DICOM codes of the classes: from the data set, else SNOMED's by the class's name, else a general one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sam2_3dmed.errors import DataError, shown
from sam2_3dmed.files.structured import read_object
from sam2_3dmed.processes.atomic import write_text


class Code(NamedTuple):
    """A coded concept: `Code("78961009", "SCT", "Spleen")`."""

    value: str
    scheme: str
    meaning: str


UNKNOWN = Code("85756007", "SCT", "Tissue")
_ANATOMY = Code("123037004", "SCT", "Anatomical Structure")
_MORPHOLOGY = Code("49755003", "SCT", "Morphologically Altered Structure")
_MORPHOLOGIES = {"tumor", "tumour", "cancer", "neoplasm", "lesion", "mass", "edema", "necrosis", "cyst", "metastasis"}
_SPELLED = {"tumour": "Tumor", "cancer": "Neoplasm"}
_LONGEST_SCHEME, _LONGEST_MEANING = 16, 64  # of the standard's SH and LO


def read_codes(path: Path) -> dict[str, Code]:
    """The codes that a `dataset.json` gives to class names: "codes": {"spleen": ["78961009", "SCT", "Spleen"]}.

    Raises:
        DataError: unreadable, codes of another form, or longer than DICOM allows. A file may have no "codes".
    """
    given = read_object(path).get("codes", {})
    if not isinstance(given, dict) or not all(_is_code(code) for code in given.values()):
        raise DataError(f'{path}: "codes" must be like {{"spleen": ["78961009", "SCT", "Spleen"]}}')
    codes = {name: Code(*code) for name, code in given.items()}
    for name, code in codes.items():
        if len(code.scheme) > _LONGEST_SCHEME or len(code.meaning) > _LONGEST_MEANING:
            longest = f"{_LONGEST_SCHEME} characters for the scheme, {_LONGEST_MEANING} for the meaning"
            raise DataError(f'{path}: the code of {shown(name)} in "codes" is too long: at most {longest}')
    return codes


def _is_code(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 3 and all(isinstance(part, str) and part for part in item)


def write_codes(path: Path, codes: Mapping[str, Code]) -> None:
    """Write codes as `read_codes` reads them. Raises DataError if the file cannot be written."""
    write_text(path, json.dumps({"codes": codes}, ensure_ascii=False) + "\n")


def code_of(name: str, given: Mapping[str, Code]) -> Code:
    """The code of a class: the one given, else SNOMED's for a name such as "left atrium", else a general one."""
    from pydicom.sr.codedict import codes

    if name in given:
        return given[name]
    words = re.findall(r"[A-Za-z]+", name)
    keyword = _SPELLED.get(name.strip().lower(), "".join(word.capitalize() for word in words))
    found = getattr(codes.SCT, keyword, None) if keyword else None
    return Code(found.value, found.scheme_designator, found.meaning) if found is not None else UNKNOWN


def category_of(name: str) -> Code:
    """Anatomy, or a growth in it."""
    return _MORPHOLOGY if _MORPHOLOGIES & set(re.findall(r"[a-z]+", name.lower())) else _ANATOMY
