import itertools

import numpy as np
import pytest
from scipy import stats

from sam2_3dmed.evaluation import statistics
from sam2_3dmed.evaluation.statistics import (
    bootstrap_interval_of_mean,
    goodness,
    holm,
    kendall_tau,
    paired_difference,
    rank,
    rank_stability,
    ranking_draws,
    significance_ranks,
    wilcoxon_p_value,
)

# Darwin's cross- and self-fertilised maize, the example of many textbooks: 15 differences in eighths of an inch.
DARWIN = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]


def p_by_counting(differences):
    """Every way to give the differences their signs."""
    sizes = np.abs([d for d in differences if d])
    ranks = stats.rankdata(sizes)
    found = sum(ranks[np.array([d for d in differences if d]) > 0])
    middle = ranks.sum() / 2
    sums = [np.dot(signs, ranks) for signs in itertools.product((0, 1), repeat=len(ranks))]
    return np.mean([abs(total - middle) >= abs(found - middle) - 1e-9 for total in sums])


def test_wilcoxon_on_darwins_maize():
    assert wilcoxon_p_value(DARWIN) == pytest.approx(0.041259765625)
    assert wilcoxon_p_value(DARWIN) == pytest.approx(stats.wilcoxon(DARWIN, method="exact").pvalue)
    assert wilcoxon_p_value([-d for d in DARWIN]) == wilcoxon_p_value(DARWIN)


@pytest.mark.parametrize(
    "differences", [[1, 2, 3, -4, 5, 6, 7], [1, 1, -2, 3, 0, 0, 5, 5], [0.25, 0, -0.25], [-3, -3, -3, 1, 2, 2, 9, 9]]
)
def test_wilcoxon_drops_zeros_and_is_exact_with_ties(differences):
    assert wilcoxon_p_value(differences) == pytest.approx(p_by_counting(differences))


def test_the_fewest_pairs_that_can_be_significant():
    assert wilcoxon_p_value([1, 2, 3, 4, 5, 0, 0]) == 2 / 2**5
    assert wilcoxon_p_value([1, 2, 3, 4, 5, 6]) == 2 / 2**statistics.FEWEST_UNTIED < statistics.ALPHA


def test_wilcoxon_of_many_is_the_normal_approximation():
    differences = np.random.default_rng(0).normal(0.2, 1, 120).round(1)
    expected = stats.wilcoxon(differences, zero_method="wilcox", method="asymptotic").pvalue
    assert wilcoxon_p_value(differences) == pytest.approx(expected)


def test_wilcoxon_without_differences():
    assert wilcoxon_p_value([0, 0, 0]) == 1
    assert wilcoxon_p_value([]) is None


def test_holm_on_a_worked_example():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 may not be smaller than the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_was_not_tested_and_stops_at_one():
    assert holm([0.02, None, 0.04]) == [0.04, None, 0.04]
    assert holm([0.5, 0.9, None]) == [1, 1, None]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_bootstrap_of_two_values():
    # means of two draws from {0, 1} are 0, 1/2 and 1 with probabilities 1/4, 1/2 and 1/4
    assert bootstrap_interval_of_mean([0, 1]) == (0, 1)
    assert bootstrap_interval_of_mean([0, 1], level=0.4) == (0.5, 0.5)
    assert bootstrap_interval_of_mean([3, 3, 3]) == (3, 3)
    assert bootstrap_interval_of_mean([3]) is None
    assert bootstrap_interval_of_mean([]) is None


def test_bootstrap_moves_and_scales_with_the_values_and_repeats():
    values = np.random.default_rng(1).normal(size=30)
    low, high = bootstrap_interval_of_mean(values)
    assert low < values.mean() < high
    assert bootstrap_interval_of_mean(2 * values + 5) == pytest.approx((2 * low + 5, 2 * high + 5))
    assert bootstrap_interval_of_mean(values) == (low, high)
    assert bootstrap_interval_of_mean(values, seed=1) != (low, high)


def test_bootstrap_drawn_in_pieces_is_the_same(monkeypatch):
    values = np.random.default_rng(2).normal(size=41)
    draws = np.random.default_rng(0).integers(41, size=(10_000, 41))
    expected = tuple(np.percentile(values[draws].mean(axis=1), (2.5, 97.5)))
    assert bootstrap_interval_of_mean(values) == pytest.approx(expected, abs=0)
    monkeypatch.setattr(statistics, "_CHUNK", 1000)
    assert bootstrap_interval_of_mean(values) == pytest.approx(expected, abs=0)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    samples = rng.normal(0.7, 0.2, size=(600, 40))
    intervals = [bootstrap_interval_of_mean(sample, resamples=500) for sample in samples]
    covered = np.mean([low <= 0.7 <= high for low, high in intervals])
    assert 0.91 < covered < 0.97  # 0.95 less what the percentile method loses at 40 cases, and chance (0.009)
    narrow = [bootstrap_interval_of_mean(sample, resamples=500, level=0.5) for sample in samples]
    assert 0.43 < np.mean([low <= 0.7 <= high for low, high in narrow]) < 0.55


NAN = np.nan


@pytest.mark.parametrize(
    ("better", "run", "baseline", "mean", "counts"),
    [
        ("higher", [0.5, 0.75, 0.5, NAN], [0.25, 0.25, 0.5, 0.5], 0.25, (2, 1, 0)),
        ("lower", [4, 2, 3, NAN], [1, 2, 9, 1], -1, (1, 1, 1)),
        ("zero", [-3, 1, 2, 1], [1, -1, -8, NAN], (2 + 0 - 6) / 3, (1, 1, 1)),
    ],
)
def test_paired_difference_by_hand(better, run, baseline, mean, counts):
    found = paired_difference(run, baseline, better)
    assert (found.pairs, found.left_out) == (3, 1)
    assert found.mean == pytest.approx(mean)
    assert (found.wins, found.ties, found.losses) == counts
    assert found.interval[0] <= mean <= found.interval[1]


def test_paired_difference_turned_round():
    rng = np.random.default_rng(4)
    one, two = rng.random((2, 20))
    there, back = paired_difference(one, two), paired_difference(two, one)
    assert there.mean == pytest.approx(-back.mean)
    assert there.mean == pytest.approx(one.mean() - two.mean())
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.p_value == back.p_value == pytest.approx(stats.wilcoxon(one, two).pvalue)
    assert there.interval == pytest.approx(bootstrap_interval_of_mean(one - two), abs=1e-9)
    assert there.interval[0] == pytest.approx(-back.interval[1])


def test_rounding_errors_are_ties():
    found = paired_difference([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (found.wins, found.ties, found.losses, found.p_value) == (0, 2, 0, 1)


def test_nothing_to_pair():
    found = paired_difference([NAN, 1], [1, NAN])
    assert (found.pairs, found.left_out, found.mean, found.interval, found.p_value) == (0, 2, None, None, None)


def test_goodness_is_more_for_the_better():
    assert goodness([1, 2], "higher").tolist() == [1, 2]
    assert goodness([1, 2], "lower").tolist() == [-1, -2]
    assert goodness([-1, 2], "zero").tolist() == [-1, -2]


def test_ranks_share_the_best_place_of_a_tie():
    assert rank([3, 1, 3, 0]).tolist() == [1, 3, 1, 4]
    assert rank([[3, 0], [1, 0], [2, 7]]).tolist() == [[1, 2], [3, 2], [2, 1]]


def test_significance_ranks_by_hand():
    base = np.linspace(0.5, 0.8, 10)
    noise = np.tile([0.01, -0.01], 5)  # no better and no worse than none
    values = [base, base + 0.1, base + noise, base - 0.1]
    assert significance_ranks(values).tolist() == [2, 1, 2, 4]
    assert significance_ranks([base, base]).tolist() == [1, 1]
    assert significance_ranks([base, np.where(np.arange(10) < 4, base + 0.1, np.nan)]).tolist() == [1, 1]
    assert significance_ranks([base, np.where(np.arange(10) < 5, base + 0.1, np.nan)]).tolist() == [2, 1]


def test_who_beats_whom_is_scipys_one_sided_test():
    rng = np.random.default_rng(5)
    draws = rng.integers(12, size=(200, 12))
    decided = set()
    for shift in (0.2, 0.5, 0.8):
        values = np.add(rng.normal(size=(2, 12)).round(1), [[shift], [0]])
        ranks = significance_ranks(values, draws)
        differences = (values[0] - values[1]).round(12)[draws]
        for number, drawn in enumerate(differences):
            test = stats.wilcoxon(
                drawn, alternative="greater", correction=True, method="asymptotic", zero_method="wilcox"
            )
            better = bool(test.pvalue <= 0.05 and np.count_nonzero(drawn) >= 5)
            decided.add(better)
            assert ranks[:, number].tolist() == ([1, 2] if better else [1, 1])
    assert decided == {True, False}


def test_redrawn_ranks_of_the_same_cases_are_the_ranks():
    values = np.random.default_rng(6).normal(size=(4, 25)) + np.arange(4)[:, None]
    ranks = significance_ranks(values, np.stack([np.arange(25), np.arange(25)[::-1]]))
    assert (ranks == significance_ranks(values)[:, None]).all()


def test_kendall_tau_is_scipys():
    rng = np.random.default_rng(7)
    ranks, others = rng.integers(1, 5, 6), rng.integers(1, 5, (6, 50))
    expected = [stats.kendalltau(ranks, other).statistic for other in others.T]
    assert kendall_tau(ranks, others) == pytest.approx(expected)
    assert np.isnan(kendall_tau([1, 1, 1], [[1], [2], [3]])).all()
    assert kendall_tau([1, 2, 3], [[1, 3], [2, 2], [3, 1]]).tolist() == [1, -1]


def test_rank_stability_by_hand():
    stability = rank_stability([1, 2], [[1, 1, 2, 1], [2, 2, 1, 1]])
    assert stability.first == (0.75, 0.5)
    assert stability.kendall_tau == pytest.approx(1 / 3)  # 1, 1, -1 and one tie
    assert stability.undefined == 0.25
    assert stability.intervals == ((1, 2), (1, 2))
    assert stability.tau_interval == pytest.approx((-0.9, 1))


def test_rank_stability_of_a_tie():
    stability = rank_stability([1, 1], [[1, 1], [2, 1]])
    assert (stability.kendall_tau, stability.tau_interval, stability.undefined) == (None, None, 1)


def test_draws_of_a_ranking_repeat():
    draws = ranking_draws(9)
    assert draws.shape == (1000, 9)
    assert set(np.unique(draws)) == set(range(9))
    assert (draws == ranking_draws(9)).all()
