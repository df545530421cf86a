"""What waits comes back as it was, from memory or from a file, and leaves nothing behind."""

import errno
import io
import shutil
from collections import namedtuple

import pytest
import torch

from sam2_3dmed.errors import DataError
from sam2_3dmed.inference import stream as shelf_module
from sam2_3dmed.inference.stream import TensorSpill, temporary_folder


def records():
    generator = torch.Generator().manual_seed(0)
    return {
        number: [
            torch.randn(2, 3, 4, generator=generator),
            torch.randn(5, generator=generator).to(torch.bfloat16),
            torch.randn(6, 2, generator=generator).half().T,
        ]
        for number in (4, 0, 2, 1, 3)
    }


RECORD_BYTES = 24 * 4 + 5 * 2 + 12 * 2


@pytest.mark.parametrize("in_memory", [True, False])
def test_records_come_back_as_they_were(in_memory):
    expected = records()
    with TensorSpill(5, 5 * RECORD_BYTES if in_memory else 5 * RECORD_BYTES - 1) as shelf:
        for number, record in expected.items():
            shelf.put(number, record)
        assert isinstance(shelf._file, io.BytesIO) == in_memory
        for number in (3, 4, 2, 0, 1):
            for tensor, other in zip(shelf.take(number), expected[number], strict=True):
                assert tensor.dtype == other.dtype
                assert torch.equal(tensor, other)


def test_the_file_is_gone_after_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(shelf_module.tempfile, "tempdir", None)
    shelf = TensorSpill(5, 0)
    shelf.put(0, [torch.zeros(9)])
    with pytest.raises(KeyError), shelf:
        shelf.take(1)
    assert shelf._file.closed
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_one_line(monkeypatch):
    free = namedtuple("Usage", "free")(2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with TensorSpill(1000, 0) as shelf:
        with pytest.raises(DataError) as caught:
            shelf.put(0, [torch.zeros(2**20)])
        assert shelf._file is None
    assert str(caught.value) == (
        f"{temporary_folder()}: no temporary file: 3.9 GiB are needed and 0.0 are free; TMPDIR names another folder"
    )


def test_a_disk_that_fills_up_is_one_line():
    with TensorSpill(5, 0) as shelf:
        shelf.put(0, [torch.zeros(9)])

        class Full:
            seek = close = staticmethod(lambda *arguments: 0)

            @staticmethod
            def write(data):
                raise OSError(errno.ENOSPC, "No space left on device")

        shelf._file.close()
        shelf._file = Full()
        with pytest.raises(DataError, match="no temporary file: No space left on device; TMPDIR names"):
            shelf.put(1, [torch.zeros(9)])


def test_tmpdir_goes_before_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(shelf_module.tempfile, "tempdir", None)
    assert temporary_folder() == str(tmp_path)
