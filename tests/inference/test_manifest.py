"""The manifest: what counts as finished, what does not, and that no writer spoils another's lines."""

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from sam2_3dmed.errors import DataError
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.manifest import Manifest
from sam2_3dmed.processes.journal import checksum

OPTIONS = {"overlap": 0.5, "codes": {"liver": ("1", "SCT", "Liver")}}


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "out").mkdir()
    return Manifest(tmp_path / "out", "runs/a", "0123", OPTIONS)


@pytest.fixture
def item(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"scan")
    return Input("a", (tmp_path / "a.nii.gz",))


@pytest.fixture
def output(manifest):
    (manifest.folder / "a.nii.gz").write_bytes(b"mask")
    return manifest.folder / "a.nii.gz"


def lines(manifest, name="manifest.jsonl"):
    return [json.loads(line) for line in (manifest.folder / name).read_text().splitlines()]


def test_a_line_says_all_of_it(manifest, item, output):
    manifest.note(item, manifest.decisive(item), [output], 1.23456)
    (line,) = lines(manifest)
    assert line["name"] == "a"
    assert line["input"] == [str(item.files[0].resolve())]
    assert line["input_bytes"] == 4
    assert line["outputs"] == {"a.nii.gz": sha256(b"mask").hexdigest()}
    assert line["seconds"] == 1.235
    assert (line["model"], line["model_checksum"]) == ("runs/a", "0123")
    assert line["options"]["overlap"] == 0.5
    assert line["worker"] == f"{socket.gethostname()}:{os.getpid()}"
    assert line["version"]
    assert manifest.finished([item]) == [True]


def test_nothing_is_finished_at_first(manifest, item, tmp_path):
    assert manifest.finished([item]) == [False]
    assert replace(manifest, folder=tmp_path / "nowhere").finished([item]) == [False]


def touched(item, output):
    os.utime(item.files[0], ns=(1, 1))


def grown(item, output):
    state = item.files[0].stat()
    item.files[0].write_bytes(b"other scan")
    os.utime(item.files[0], ns=(state.st_atime_ns, state.st_mtime_ns))


def damaged(item, output):
    output.write_bytes(b"mas")


def gone(item, output):
    output.unlink()


@pytest.mark.parametrize("change", [touched, grown, damaged, gone])
def test_a_case_whose_files_changed_is_done_again(manifest, item, output, change):
    manifest.note(item, manifest.decisive(item), [output], 1)
    change(item, output)
    assert manifest.finished([item]) == [False]


def test_an_input_that_was_replaced_after_it_was_read_is_done_again(manifest, item, output):
    decisive = manifest.decisive(item)
    item.files[0].write_bytes(b"another scan")
    manifest.note(item, decisive, [output], 1)
    assert manifest.finished([item]) == [False]


def test_a_name_that_is_not_utf8(manifest, output, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.nii.gz")
    path.write_bytes(b"scan")
    item = Input(path.name, (path,))
    manifest.note(item, manifest.decisive(item), [output], 1)
    assert manifest.finished([item]) == [True]
    path.write_bytes(b"another")
    assert manifest.finished([item]) == [False]


def test_an_input_that_has_vanished_is_not_finished(manifest, item, output, tmp_path):
    other = Input("b", (tmp_path / "b.nii.gz",))
    other.files[0].write_bytes(b"scan")
    for one in (item, other):
        manifest.note(one, manifest.decisive(one), [output], 1)
    other.files[0].unlink()
    assert manifest.finished([item, other]) == [True, False]


def test_a_case_that_lies_elsewhere_is_another(manifest, item, output, tmp_path):
    manifest.note(item, manifest.decisive(item), [output], 1)
    (tmp_path / "deep").mkdir()
    moved = item.files[0].rename(tmp_path / "deep" / "a.nii.gz")
    assert manifest.finished([Input("a", (moved,))]) == [False]


@pytest.mark.parametrize(
    ("change", "finished"),
    [
        ({"model": "moved/a"}, True),
        ({"model_checksum": "0124"}, False),
        ({"options": OPTIONS | {"overlap": 0.25}}, False),
        ({"options": OPTIONS | {"flips": True}}, False),
        ({"options": {"overlap": 0.5}}, False),
    ],
)
def test_another_model_or_option_does_it_again(manifest, item, output, change, finished):
    manifest.note(item, manifest.decisive(item), [output], 1)
    assert replace(manifest, **change).finished([item]) == [finished]


def test_another_series_of_the_same_files(manifest, item, output):
    manifest.note(item, manifest.decisive(item), [output], 1)
    assert manifest.finished([replace(item, series_uid="1.2")]) == [False]


def test_a_folder_changes_with_any_file_of_its_tree(manifest, output, tmp_path):
    (tmp_path / "study" / "deep").mkdir(parents=True)
    (tmp_path / "study" / "deep" / "1").write_bytes(b"1")
    study = Input("a", (tmp_path / "study",))
    manifest.note(study, manifest.decisive(study), [output], 1)
    assert manifest.finished([study]) == [True]
    (tmp_path / "study" / "2").write_bytes(b"2")
    assert manifest.finished([study]) == [False]


def test_every_output_must_be_whole(manifest, item, output):
    (manifest.folder / "auxiliary").mkdir()
    extra = manifest.folder / "auxiliary" / "a.json"
    extra.write_text("{}")
    manifest.note(item, manifest.decisive(item), [output, extra], 1)
    assert manifest.finished([item]) == [True]
    extra.unlink()
    assert manifest.finished([item]) == [False]


@pytest.mark.parametrize("cut", [1, 40])
def test_a_torn_last_line_is_repaired_by_the_next(manifest, item, output, cut):
    manifest.note(item, manifest.decisive(item), [output], 1)
    manifest.note(replace(item, name="b"), manifest.decisive(item), [output], 1)
    path = manifest.folder / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert manifest.finished([item]) == [True]
    manifest.note(replace(item, name="c"), manifest.decisive(item), [output], 1)
    assert [line["name"] for line in lines(manifest)] == ["a", "c"]


def test_a_file_that_is_one_torn_line(manifest, item, output):
    (manifest.folder / "manifest.jsonl").write_text('{"name": "a"')
    assert manifest.finished([item]) == [False]
    manifest.note(item, manifest.decisive(item), [output], 1)
    assert [line["name"] for line in lines(manifest)] == ["a"]


@pytest.mark.parametrize("text", ["[]", "3", '{"name": "a"}', '{"name": "a", "outputs": 3}', "no json", '{"name": []}'])
def test_lines_of_something_else_say_nothing(manifest, item, output, text):
    manifest.note(item, manifest.decisive(item), [output], 1)
    with (manifest.folder / "manifest.jsonl").open("a") as file:
        file.write(text + "\n")
    assert manifest.finished([item]) == [True]


def _write_many(manifest, item, output, first):
    decisive = manifest.decisive(item)
    for number in range(first, first + 50):
        manifest.note(replace(item, name=f"case {number} " + "x" * 3000), decisive, [output], 1)


def test_several_writers_lose_and_mix_nothing(manifest, item, output):
    context = multiprocessing.get_context("forkserver")
    writers = [context.Process(target=_write_many, args=(manifest, item, output, 50 * n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    numbers = sorted(int(line["name"].split()[1]) for line in lines(manifest))
    assert numbers == list(range(150))


def test_files_of_several_hosts_are_read_together(manifest, item, output):
    other = replace(manifest, per_host=True)
    other.note(item, manifest.decisive(item), [output], 1)
    assert [path.name for path in manifest.folder.glob("*.jsonl")] == [f"manifest.{socket.gethostname()}.jsonl"]
    assert manifest.finished([item]) == [True]


def test_to_forget_takes_just_these_cases_away(manifest, item, output):
    for name in "abc":
        manifest.note(replace(item, name=name), manifest.decisive(item), [output], 1)
    replace(manifest, per_host=True).note(item, manifest.decisive(item), [output], 1)
    manifest.forget([item, replace(item, name="c")])
    assert [line["name"] for line in lines(manifest)] == ["b"]
    assert manifest.finished([item, replace(item, name="b")]) == [False, True]


def test_what_cannot_be_written_or_read_is_a_line(manifest, item, output):
    (manifest.folder / "manifest.jsonl").mkdir()
    with pytest.raises(DataError, match=r"manifest\.jsonl: cannot be written: Is a directory"):
        manifest.note(item, manifest.decisive(item), [output], 1)
    with pytest.raises(DataError, match=r"manifest\.jsonl: cannot be read: Is a directory"):
        manifest.finished([item])


def test_checksum(tmp_path):
    for name, array in {"a": np.arange(9), "b": np.arange(8)}.items():
        array.tofile(tmp_path / name)
    a, b = tmp_path / "a", tmp_path / "b"
    assert checksum([a]) == sha256(a.read_bytes()).hexdigest()
    assert len({checksum([a]), checksum([b]), checksum([a, b]), checksum([b, a])}) == 4
    with pytest.raises(DataError, match=r"gone: cannot be read: No such file"):
        checksum([tmp_path / "gone"])


def test_new_voxels_behind_an_old_header_are_predicted_again(manifest, output, tmp_path):
    (tmp_path / "scan.mhd").write_text("NDims = 3\nElementDataFile = scan.raw\n")
    (tmp_path / "scan.raw").write_bytes(b"voxels")
    item = Input("scan", (tmp_path / "scan.mhd",))
    manifest.note(item, manifest.decisive(item), [output], 1)
    assert manifest.finished([item]) == [True]
    (tmp_path / "scan.raw").write_bytes(b"other voxels")
    assert manifest.finished([item]) == [False]
