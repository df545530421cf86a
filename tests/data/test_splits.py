import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam2_3dmed.config import SplitConfig
from sam2_3dmed.data.splits import Split, split_cases
from sam2_3dmed.errors import DataError


def _names(count: int) -> list[str]:
    return [f"case_{i:03d}" for i in range(count)]


def make_split(names: Sequence[str], **options: float) -> Split:
    return split_cases(names, SplitConfig(**options))


def make_folds(names: Sequence[str], num_folds: int, seed: int) -> list[Split]:
    return [split_cases(names, SplitConfig(seed=seed), (fold, num_folds)) for fold in range(1, num_folds + 1)]


def _all(split: Split) -> list[str]:
    return sorted([*split.train, *split.validation, *split.test])


class TestMakeSplit:
    @pytest.mark.parametrize(
        ("count", "train", "validation", "test"),
        [(200, 144, 16, 40), (63, 45, 5, 13), (41, 30, 3, 8), (10, 7, 1, 2), (3, 1, 1, 1)],
    )
    def test_a_fifth_is_test_and_a_tenth_of_the_rest_validation(
        self, count: int, train: int, validation: int, test: int
    ) -> None:
        split = make_split(_names(count), seed=0)
        assert (len(split.train), len(split.validation), len(split.test)) == (train, validation, test)
        assert _all(split) == _names(count)

    @given(st.permutations(_names(12)), st.integers(0, 5))
    def test_the_order_of_the_names_does_not_matter(self, names: list[str], seed: int) -> None:
        assert make_split(names, seed=seed) == make_split(_names(12), seed=seed)

    def test_the_seed_matters(self) -> None:
        splits = {make_split(_names(50), seed=seed) for seed in range(5)}
        assert len(splits) == 5

    def test_it_is_the_same_for_ever(self) -> None:
        split = make_split(_names(10), seed=0)
        assert split.test == ("case_005", "case_008")  # the two smallest of sha256("0/NAME")

    def test_every_case_is_tested_about_as_often(self) -> None:
        tests = [name for seed in range(400) for name in make_split(_names(10), seed=seed).test]
        assert all(50 <= tests.count(name) <= 110 for name in _names(10))  # 80 expected, 4 deviations

    @pytest.mark.parametrize("count", [0, 1, 2])
    def test_too_few_cases(self, count: int) -> None:
        with pytest.raises(DataError, match=f"^{count} labelled cases are too few"):
            make_split(_names(count), seed=0)

    def test_names_must_differ(self) -> None:
        with pytest.raises(DataError, match="case_001"):
            make_split([*_names(5), "case_001"], seed=0)


class TestMakeFolds:
    @given(st.integers(3, 40), st.integers(2, 8), st.integers(0, 3))
    def test_every_case_is_tested_once(self, count: int, num_folds: int, seed: int) -> None:
        if count < num_folds or (count == 3 and num_folds == 2):
            return
        folds = make_folds(_names(count), num_folds, seed)
        assert len(folds) == num_folds
        assert sorted(name for fold in folds for name in fold.test) == _names(count)
        sizes = [len(fold.test) for fold in folds]
        assert max(sizes) - min(sizes) <= 1
        assert all(_all(fold) == _names(count) for fold in folds)

    def test_validation_differs_between_folds(self) -> None:
        folds = make_folds(_names(100), 5, seed=0)
        assert [len(fold.validation) for fold in folds] == [8] * 5
        assert len({fold.validation for fold in folds}) == 5

    def test_the_order_of_the_names_does_not_matter(self) -> None:
        assert make_folds(_names(20), 4, 1) == make_folds(_names(20)[::-1], 4, 1)

    @pytest.mark.parametrize(("count", "num_folds"), [(3, 2), (4, 5), (2, 2), (0, 3)])
    def test_too_few_cases(self, count: int, num_folds: int) -> None:
        with pytest.raises(DataError, match=f"^{count} labelled cases are too few for {num_folds} folds"):
            make_folds(_names(count), num_folds, 0)

    def test_one_fold_is_none(self) -> None:
        with pytest.raises(DataError, match="at least 2 folds"):
            make_folds(_names(10), 1, 0)


class TestFile:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        split = make_split(["ä", *_names(9)], seed=3)
        split.write(tmp_path / "split.json")
        assert Split.read(tmp_path / "split.json") == split
        assert [file.name for file in tmp_path.iterdir()] == ["split.json"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "broken JSON"),
            ("[]", "an object is expected, not a list"),
            ('{"train": ["a"], "validation": ["b"]}', "expected the keys"),
            ('{"train": ["a"], "validation": ["b"], "test": ["c"], "seed": 1}', "expected the keys"),
            ('{"train": ["a"], "validation": "b", "test": ["c"]}', "validation: expected a list"),
            ('{"train": ["a"], "validation": [1], "test": ["c"]}', "validation: expected a list"),
            ('{"train": ["a"], "validation": [], "test": ["c"]}', "no cases for validation"),
            ('{"train": ["a"], "validation": ["b"], "test": ["a"]}', "once in a split: a"),
        ],
    )
    def test_a_broken_file_gets_one_line(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "split.json"
        path.write_text(content)
        with pytest.raises(DataError) as caught:
            Split.read(path)
        assert str(caught.value).startswith(str(path))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read"):
            Split.read(tmp_path / "split.json")
        (tmp_path / "file").write_text("")
        with pytest.raises(DataError, match="cannot be written"):
            make_split(_names(5), seed=0).write(tmp_path / "file" / "split.json")

    def test_the_order_in_the_file_does_not_matter(self, tmp_path: Path) -> None:
        path = tmp_path / "split.json"
        path.write_text(json.dumps({"test": ["d"], "train": ["c", "a"], "validation": ["b"]}))
        assert Split.read(path) == Split(("a", "c"), ("b",), ("d",))


def test_cases_the_data_set_lacks_are_named() -> None:
    split = Split(("a", "c"), ("b",), ("d",))
    split.require_known(["d", "c", "b", "a", "e"])
    with pytest.raises(DataError, match="lacks 2 cases of the split: a, d"):
        split.require_known(["b", "c"])


def test_the_split_has_the_shares_that_a_recipe_asks_for() -> None:
    options = SplitConfig(seed=3, test_fraction=0.3, validation_fraction=0.2)
    split = split_cases(_names(20), options)
    assert (len(split.train), len(split.validation), len(split.test)) == (11, 3, 6)
    fold = split_cases(_names(20), options, (2, 5))
    assert (len(fold.train), len(fold.validation), len(fold.test)) == (13, 3, 4)


class TestForeground:
    """Sizes are those of 10 cases: 7 to train, 1 to validate, 2 to test; of 50: 36, 4 and 10."""

    def test_nothing_changes_where_every_case_has_foreground(self) -> None:
        names = _names(50)
        assert split_cases(names, SplitConfig(), foreground=names) == make_split(names)

    def test_the_only_validation_case_has_foreground(self) -> None:
        plain = make_split(_names(10))
        foreground = [*plain.train[:3], *plain.test]
        split = split_cases(_names(10), SplitConfig(), foreground=foreground)
        assert split.test == plain.test
        assert len(split.validation) == 1
        assert set(split.validation) < set(plain.train[:3])

    def test_training_and_validation_have_equal_shares(self) -> None:
        rest = {*_names(50)} - {*make_split(_names(50)).test}
        foreground = sorted(rest)[::2]  # 20 of 40
        split = split_cases(_names(50), SplitConfig(), foreground=foreground)
        assert len({*split.validation} & {*foreground}) == 2
        assert len({*split.train} & {*foreground}) == 18
        assert split == split_cases(_names(50)[::-1], SplitConfig(), foreground=foreground[::-1])

    def test_the_last_case_with_foreground_is_trained_on(self) -> None:
        plain = make_split(_names(10))
        split = split_cases(_names(10), SplitConfig(), foreground=plain.validation)
        assert set(plain.validation) < set(split.train)
        assert len(split.validation) == 1

    @given(st.integers(3, 30), st.sets(st.integers(0, 29)), st.integers(0, 3))
    def test_sizes_stay_and_both_parts_have_foreground(self, count: int, with_foreground: set[int], seed: int) -> None:
        names, options = _names(count), SplitConfig(seed=seed, validation_fraction=0.3)
        plain = split_cases(names, options)
        foreground = [name for number, name in enumerate(names) if number in with_foreground]
        split = split_cases(names, options, foreground=foreground)
        assert split.test == plain.test
        assert _all(split) == names
        assert len(split.validation) == len(plain.validation)
        holding = {*foreground} - {*split.test}
        assert bool({*split.train} & holding) == (len(holding) > 0)
        assert bool({*split.validation} & holding) == (len(holding) > 1)


class TestFewTrainingCases:
    def test_fewer_are_among_more_and_the_other_parts_stay(self) -> None:
        whole = make_split(_names(200))
        few = {count: make_split(_names(200), training_cases=count) for count in (1, 4, 8, 144, 500)}
        assert {count: len(split.train) for count, split in few.items()} == {1: 1, 4: 4, 8: 8, 144: 144, 500: 144}
        assert set(few[1].train) < set(few[4].train) < set(few[8].train) < set(whole.train)
        assert all((s.validation, s.test) == (whole.validation, whole.test) for s in few.values())
        assert few[500] == whole

    def test_they_may_be_named(self) -> None:
        whole = make_split(_names(40))
        wanted = whole.train[1:7:2]
        few = make_split(_names(40), training_cases=wanted)
        assert few == replace(whole, train=wanted)
        with pytest.raises(DataError, match=f"'{whole.test[0]}' is not among the {len(whole.train)} training cases"):
            make_split(_names(40), training_cases=(*wanted, whole.test[0]))

    @given(st.integers(1, 30), st.sets(st.integers(0, 39), min_size=2))
    def test_they_have_their_share_of_foreground(self, count: int, with_foreground: set[int]) -> None:
        foreground = {f"case_{index:03d}" for index in with_foreground}
        options = SplitConfig(training_cases=count)
        whole = set(split_cases(_names(40), SplitConfig(), foreground=foreground).train)
        few = set(split_cases(_names(40), options, foreground=foreground).train)
        more = SplitConfig(training_cases=count + 1)
        assert few <= set(split_cases(_names(40), more, foreground=foreground).train) <= whole
        assert len(few) == min(count, len(whole))
        if whole & foreground:
            assert few & foreground
            assert abs(len(few & foreground) - len(few) * len(whole & foreground) / len(whole)) <= 1
