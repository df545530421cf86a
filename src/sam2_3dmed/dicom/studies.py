"""The studies in a tree of folders: one file of each folder tells which study it holds, since trees are large."""

from collections import defaultdict
from itertools import groupby
from os.path import commonpath
from pathlib import Path

from sam2_3dmed.dicom.files import (
    DicomFile,
    files_below,
    is_dicom,
    is_directory,
    opened,
    read_dataset,
    require_dicom,
)
from sam2_3dmed.errors import VolumeError


def study_folders(root: Path) -> list[Path]:
    """The folder of each DICOM study below `root`, the highest that holds this study alone; `root` if it is one study.

    Raises:
        VolumeError: folders of two studies lie among each other, a file is damaged, or the extra is missing.
    """
    require_dicom()
    studies: defaultdict[str, list[Path]] = defaultdict(list)
    for folder, files in groupby(files_below(root), key=lambda file: file.parent):
        uid = _study_of(list(files))
        if uid is not None:
            studies[uid].append(folder)
    if len(studies) <= 1:
        return [root]
    return sorted(_top(root, uid, studies) for uid in studies)


def study_name(root: Path, folder: Path) -> str:
    """What a study below `root` is called: its folders below `root`, or `root` itself."""
    return root.resolve().name if folder == root else "_".join(folder.relative_to(root).parts)


def _top(root: Path, uid: str, studies: dict[str, list[Path]]) -> Path:
    others = [folder for other, folders in studies.items() if other != uid for folder in folders]
    top = Path(commonpath(studies[uid]))
    if any(other.is_relative_to(top) for other in others):
        raise VolumeError(f"{top}: the folders of several studies lie among each other; give the folder of each study")
    while top.parent != root and not any(other.is_relative_to(top.parent) for other in others):
        top = top.parent
    return top


def _study_of(files: list[Path]) -> str | None:
    """The study of the first DICOM file, empty where its UID was taken away; none if there is no DICOM file."""
    for file, stream in opened(map(DicomFile, files)):
        if is_dicom(stream):
            header = read_dataset(file, stream, ["StudyInstanceUID"])
            if not is_directory(header):
                return str(header.get("StudyInstanceUID") or "")
    return None
