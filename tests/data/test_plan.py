from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed.config import ChannelPlan, Plan
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import CaseFingerprint, ClassFingerprint, Fingerprint, fingerprint
from sam2_3dmed.data.plan import choose_slicing_axis, propose_plan, read_plan_yaml, write_plan_yaml
from sam2_3dmed.errors import ConfigError, DataError


def _case(
    name: str,
    *,
    slices: dict[int, int],
    depth: int = 100,
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    intensity: float = 0.0,
) -> CaseFingerprint:
    """A case whose classes span `slices` axial slices, with foreground intensity .. intensity + 1000."""
    return CaseFingerprint(
        name=name,
        shape=(90, 80, depth),
        spacing_mm=spacing_mm,
        orientation="RAS",
        num_channels=1,
        classes={value: ClassFingerprint(1.0, (50, 50, count)) for value, count in slices.items()},
        intensities=((intensity, intensity + 500, intensity + 1000),),
        num_foreground=1001,
        foreground_sample=intensity + np.arange(1001.0)[None],
    )


def _fingerprint(*cases: CaseFingerprint, channel: str = "MRI") -> Fingerprint:
    return Fingerprint("Tiny", (channel,), {1: "liver", 2: "tumour"}, cases)


class TestIntensities:
    @pytest.mark.parametrize("channel", ["CT", "ct", "CT scan", "contrast_CT", "CBCT"])
    def test_ct_gets_fixed_bounds(self, channel: str) -> None:
        plan = propose_plan(_fingerprint(_case("a", slices={1: 9}), channel=channel))
        assert plan.channels == (ChannelPlan(name=channel, normalisation="fixed", low=5, high=995),)

    @pytest.mark.parametrize("channel", ["MRI", "T2", "PET", "noNorm", "direct", "image"])
    def test_others_get_percentiles(self, channel: str) -> None:
        plan = propose_plan(_fingerprint(_case("a", slices={1: 9}), channel=channel))
        assert plan.channels == (ChannelPlan(name=channel, normalisation="percentiles", low=0.5, high=99.5),)

    def test_cases_that_are_not_named_do_not_count(self) -> None:
        train = [_case(name, slices={1: 9}) for name in "ab"]
        test = _case("c", slices={1: 60}, intensity=1e6, depth=3, spacing_mm=(9, 1, 1))
        found = _fingerprint(*train, test, channel="CT")
        assert propose_plan(found, ["a", "b"]) == propose_plan(_fingerprint(*train, channel="CT"))
        assert propose_plan(found).channels[0].high > 1e6

    def test_a_ct_without_usable_foreground_is_an_error(self) -> None:
        empty = replace(_case("a", slices={}), num_foreground=0, foreground_sample=np.empty((1, 0)))
        with pytest.raises(DataError, match="Tiny: no foreground"):
            propose_plan(_fingerprint(empty, channel="CT"))
        constant = replace(_case("a", slices={1: 3}), foreground_sample=np.full((1, 1001), 7.0))
        with pytest.raises(DataError, match="constant"):
            propose_plan(_fingerprint(constant, channel="CT"))


class TestSlab:
    @pytest.mark.parametrize(("slices", "slab"), [(100, 12), (24, 12), (23, 6), (6, 6), (5, 3), (1, 3)])
    def test_it_follows_the_structure(self, slices: int, slab: int) -> None:
        assert propose_plan(_fingerprint(_case("a", slices={1: slices}))).slab_slices == slab

    def test_the_class_that_spans_most_decides_by_its_median_where_present(self) -> None:
        cases = [_case(name, slices={1: 30, 2: 2}) for name in "ab"]
        assert propose_plan(_fingerprint(*cases, _case("c", slices={2: 2}))).slab_slices == 12
        assert propose_plan(_fingerprint(cases[0], *(_case(n, slices={1: 5}) for n in "cd"))).slab_slices == 3

    def test_it_is_no_longer_than_most_volumes(self) -> None:
        long, short = (_case("a", slices={1: 40}), _case("c", slices={1: 40})), _case("b", slices={1: 4}, depth=4)
        assert propose_plan(_fingerprint(*long, short)).slab_slices == 12  # the short one gives shorter slabs
        shallow = [_case(name, slices={1: 8}, depth=8) for name in "bde"]
        assert propose_plan(_fingerprint(*long[:1], *shallow)).slab_slices == 6


def test_the_axis_crosses_thick_slices() -> None:
    assert propose_plan(_fingerprint(_case("a", slices={1: 9}))).slicing_axis == "axial"
    thick = _case("a", slices={1: 9}, spacing_mm=(1, 5, 1))
    plan = propose_plan(_fingerprint(thick))
    assert plan.slicing_axis == "coronal"
    assert plan.slab_slices == 12  # 50 coronal slices


def test_the_labels_are_all_of_the_data_set() -> None:
    plan = propose_plan(_fingerprint(_case("a", slices={1: 9})))
    assert plan.labels == {1: "liver", 2: "tumour"}
    assert plan.dataset == "Tiny"


class TestFile:
    @pytest.mark.parametrize("name", ["liver", "yes", "1", "a: b # c", "'\"", "Läsion", "- x", "", "x" * 200, "{a}"])
    def test_what_is_written_is_read(self, tmp_path: Path, name: str) -> None:
        channels = (
            ChannelPlan(name=name, normalisation="fixed", low=-1e-7, high=1e22),
            ChannelPlan(name="MRI", normalisation="percentiles", low=0, high=100),
        )
        plan = Plan(
            dataset=name,
            channels=channels,
            labels={1: name, 300: "tumour"},
            slicing_axis="coronal",
            slab_slices=12,
            nsd_tolerance_mm=0.1,
        )
        write_plan_yaml(plan, tmp_path / "plan.yaml")
        assert read_plan_yaml(tmp_path / "plan.yaml") == plan
        assert [file.name for file in tmp_path.iterdir()] == ["plan.yaml"]

    def test_every_key_is_explained(self, tmp_path: Path) -> None:
        write_plan_yaml(propose_plan(_fingerprint(_case("a", slices={1: 9}))), tmp_path / "plan.yaml")
        lines = (tmp_path / "plan.yaml").read_text().splitlines()
        for key in Plan.model_fields:
            number = next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
            assert lines[number - 1].startswith("#")

    @pytest.mark.parametrize(
        ("old", "new", "key"),
        [
            ("slab_slices: 6", "slab_slices: 0", "slab_slices"),
            ("slicing_axis: axial", "slicing_axis: diagonal", "slicing_axis"),
            ("slab_slices", "slab_slicse", "'slab_slices'"),
            ("high: 99.5", "high: 0.1", "channels.0"),
            ("  1: liver", "  1: yes", "labels.1"),
            ("dataset: Tiny", "dataset: [", "not valid YAML"),
        ],
    )
    def test_a_mistake_names_file_and_key(self, tmp_path: Path, old: str, new: str, key: str) -> None:
        path = tmp_path / "plan.yaml"
        write_plan_yaml(propose_plan(_fingerprint(_case("a", slices={1: 9}))), path)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError) as caught:
            read_plan_yaml(path)
        assert str(path) in str(caught.value)
        assert key in str(caught.value)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            read_plan_yaml(tmp_path / "plan.yaml")
        plan = propose_plan(_fingerprint(_case("a", slices={1: 9})))
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot be written"):
            write_plan_yaml(plan, tmp_path / "file" / "plan.yaml")


def test_real_ct(shared_data: Path) -> None:
    dataset = read_dataset(shared_data / "Task91_SarcomaCT")
    found = fingerprint(replace(dataset, cases=dataset.cases[:3]))
    plan = propose_plan(found, [dataset.cases[0].name])
    assert plan.channels[0].normalisation == "fixed"
    assert plan.labels == {1: "GTV"}
    assert plan.slicing_axis == "axial"
    assert plan.slab_slices == 6  # 16 slices
    (case,) = (case for case in found.cases if case.name == dataset.cases[0].name)
    assert plan.channels[0].low == pytest.approx(case.intensities[0][0], abs=2)
    assert plan.channels[0].high == pytest.approx(case.intensities[0][2], abs=2)


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ([(1, 1, 1)], "axial"),
        ([(0.7, 0.7, 5)], "axial"),
        ([(0.6, 3.0, 0.6)], "coronal"),
        ([(3.0, 0.6, 0.6)], "sagittal"),
        ([(1, 2, 1)], "axial"),  # the anisotropy must exceed 2
        ([(1, 2.01, 1)], "coronal"),
        ([(3, 3, 1)], "coronal"),  # coronal goes before sagittal
        ([(1, 3, 3)], "axial"),  # a tie with axial is axial
        ([(0.6, 3, 0.6)] * 2 + [(1, 1, 9)], "coronal"),  # medians, not means
        ([(0.6, 3, 0.6)] + [(1, 1.2, 1)] * 2, "axial"),
    ],
)
def test_choose_slicing_axis(spacings, expected):
    assert choose_slicing_axis(spacings) == expected
