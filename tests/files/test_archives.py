"""Zips: members are checked from end to end and limited; whatever is wrong is one line that names the member."""

import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from sam2_3dmed.errors import VolumeError
from sam2_3dmed.files import archives
from sam2_3dmed.files.archives import is_whole_zip, open_zip, read_member

CONTENT = bytes(range(256)) * 100


def make(path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("folder/a", CONTENT)
    return path


def read(path: Path) -> bytes:
    with open_zip(path) as archive, read_member(archive, "folder/a") as member:
        return member.read()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_every_damaged_byte_is_noticed(method: int, tmp_path: Path) -> None:
    """Each byte in turn: the content is right, or there is one line. Bytes of names and dates do not matter."""
    content = make(tmp_path / "a.zip", method).read_bytes()
    assert read(tmp_path / "a.zip") == CONTENT
    assert is_whole_zip(tmp_path / "a.zip")
    ends = [*range(100), *range(100, len(content) - 160, 97), *range(len(content) - 160, len(content))]
    for place in ends:
        (tmp_path / "b.zip").write_bytes(content[:place] + bytes([content[place] ^ 0x41]) + content[place + 1 :])
        with suppress(VolumeError, KeyError):  # a KeyError: a member of another name
            assert read(tmp_path / "b.zip") == CONTENT


@pytest.mark.parametrize("keep", [0, 1, 30, 500, -30, -1])
def test_a_zip_that_is_cut_short(keep: int, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make(tmp_path / "b.zip").read_bytes()[:keep])
    with pytest.raises(VolumeError, match=r"a\.zip"):
        read(tmp_path / "a.zip")
    assert not is_whole_zip(tmp_path / "a.zip")


def test_an_encrypted_member(tmp_path: Path) -> None:
    content = bytearray(make(tmp_path / "a.zip").read_bytes())
    central = content.rindex(b"PK\x01\x02")
    for place in (6, central + 8):
        struct.pack_into("<H", content, place, 1)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(VolumeError, match=r"a\.zip/folder/a: cannot be read: .*encrypted"):
        read(tmp_path / "a.zip")


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.zip")
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", len(CONTENT))
    assert read(tmp_path / "a.zip") == CONTENT
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", len(CONTENT) - 1)
    with pytest.raises(VolumeError, match=r"a\.zip/folder/a: cannot be read: it has more than"):
        read(tmp_path / "a.zip")
    monkeypatch.setattr(archives, "MAX_MEMBERS", 0)
    with pytest.raises(VolumeError, match=r"a\.zip: the zip has more than 0 members"):
        read(tmp_path / "a.zip")


def test_a_large_member_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_IN_MEMORY_BYTES", 1000)
    with open_zip(make(tmp_path / "a.zip")) as archive, read_member(archive, "folder/a") as member:
        assert member._rolled  # the file of `SpooledTemporaryFile`
        assert member.read() == CONTENT
        member.seek(5)
        assert member.read(3) == CONTENT[5:8]
