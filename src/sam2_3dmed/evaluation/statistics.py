"""Statistics of runs on the same cases: paired differences, tests, corrections, ranks and their stability.

All are functions of arrays; docs/reference/statistics.md gives the reasons. scipy.stats takes a second to import, so
it is imported where it is called.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.evaluation.metrics import Better

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # of every statement that a difference is significant
SEED = 0
RESAMPLES = 10_000  # of a mean
RANKING_RESAMPLES = 1_000  # of a ranking
FEWEST_UNTIED = 6  # two-sided p is at least 2 / 2**n: 0.0625 for n = 5, 0.031 for n = 6
_FEWEST_ONE_SIDED = 5  # 1 / 2**n: 0.0625 for n = 4, 0.031 for n = 5
_TIE_DECIMALS = 12  # machines add in other orders, so smaller differences are ties
_CHUNK = 1_000_000  # indices drawn at a time

Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """A run compared with the baseline on the cases where both are defined.

    Attributes:
        left_out: Cases in which the run or the baseline is undefined.
        mean: Of run minus baseline, in the metric's unit; of the magnitudes for a metric that is best at zero.
        interval: Bootstrap interval of the mean; None for fewer than two pairs.
        wins, ties, losses: Cases in which the run is better than, equal to, worse than the baseline.
        p_value: Wilcoxon signed-rank, two-sided, not adjusted; None without a pair.
    """

    pairs: int
    left_out: int
    mean: float | None
    interval: Interval | None
    wins: int
    ties: int
    losses: int
    p_value: float | None


@dataclass(frozen=True)
class RankStability:
    """How a ranking changes when the cases are drawn again.

    Attributes:
        intervals: For each run, the percentiles of its rank over the draws, at LEVEL.
        first: For each run, the share of the draws in which it has rank 1, shared or not.
        kendall_tau, tau_interval: Mean and percentiles over the draws of Kendall's tau-b with the ranking of all cases.
            None if tau is undefined in every draw, for example because all runs share a rank.
        undefined: The share of the draws in which tau is undefined.
    """

    intervals: tuple[Interval, ...]
    first: tuple[float, ...]
    kendall_tau: float | None
    tau_interval: Interval | None
    undefined: float


def bootstrap_interval_of_mean(
    values: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> Interval | None:
    """The percentile bootstrap interval of the mean of (cases,) finite values; None for fewer than two."""
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return None
    means = [array[draws].mean(axis=1) for draws in _case_draws(array.size, resamples, seed)]
    return _percentiles(np.concatenate(means), level)


def bootstrap_intervals(table: Floats) -> list[Interval | None]:
    """The same for all columns of (cases, columns), which share the draws and may have NaN.

    A draw's mean is over its defined values; a draw without any is left out.
    """
    is_defined = ~np.isnan(table)
    sums, counts = [], []
    for draws in _case_draws(len(table), RESAMPLES, SEED):
        # How often each draw holds each case. One product then gives the sums of all columns.
        offsets = len(table) * np.arange(len(draws))[:, None]
        times = np.bincount((draws + offsets).ravel(), minlength=draws.size).reshape(draws.shape).astype(np.float64)
        sums.append(times @ np.where(is_defined, table, 0.0))
        counts.append(times @ is_defined.astype(np.float64))
    columns = zip(is_defined.T, np.concatenate(sums).T, np.concatenate(counts).T, strict=True)
    return [_interval_of_means(total[n > 0] / n[n > 0]) if known.sum() > 1 else None for known, total, n in columns]


def _interval_of_means(means: Floats) -> Interval:
    low, high = np.percentile(means, (2.5, 97.5)).tolist()
    return low, high


def paired_difference(values: ArrayLike, baseline: ArrayLike, better: Better = "higher") -> PairedDifference:
    """Compare two runs case by case: (cases,) values of the same cases in the same order, NaN where undefined."""
    run, other = (np.asarray(given, dtype=np.float64) for given in (values, baseline))
    if better == "zero":
        run, other = np.abs(run), np.abs(other)
    differences = np.round(run - other, _TIE_DECIMALS)
    differences = differences[np.isfinite(differences)]
    gains = differences if better == "higher" else -differences
    return PairedDifference(
        pairs=differences.size,
        left_out=run.size - differences.size,
        mean=float(differences.mean()) if differences.size else None,
        interval=bootstrap_interval_of_mean(differences),
        wins=int((gains > 0).sum()),
        ties=int((gains == 0).sum()),
        losses=int((gains < 0).sum()),
        p_value=wilcoxon_p_value(differences),
    )


def wilcoxon_p_value(differences: ArrayLike) -> float | None:
    """The two-sided p value of Wilcoxon's signed-rank test on (pairs,) finite differences, zeros dropped.

    It is exact up to 50 differences of distinct size, or up to 13 with ties; else from the normal approximation,
    corrected for ties. It is 1.0 if every difference is zero, None if there is no difference.
    """
    from scipy.stats import wilcoxon

    array = np.asarray(differences, dtype=np.float64)
    untied = array[array != 0]
    if not untied.size:
        return 1.0 if array.size else None
    return float(wilcoxon(untied).pvalue)


def holm(p_values: Iterable[float | None]) -> list[float | None]:
    """Adjust p values for multiple tests with Holm's step-down method; None stays None and counts as no test."""
    adjusted = list(p_values)
    order = sorted((p, index) for index, p in enumerate(adjusted) if p is not None)
    largest = 0.0
    for position, (p, index) in enumerate(order):
        adjusted[index] = largest = max(largest, min(1.0, (len(order) - position) * p))
    return adjusted


def goodness(values: ArrayLike, better: Better) -> Floats:
    """Turn values so that more is better."""
    array = np.asarray(values, dtype=np.float64)
    if better == "higher":
        return array
    return -np.abs(array) if better == "zero" else -array


def rank(scores: ArrayLike) -> Floats:
    """Rank along the first axis, the highest score first; equal scores share the best of their ranks."""
    from scipy.stats import rankdata

    ranks: Floats = rankdata(-np.asarray(scores, dtype=np.float64), method="min", axis=0).astype(float)
    return ranks


def significance_ranks(values: ArrayLike, draws: NDArray[np.int64] | None = None) -> Floats:
    """Rank runs by how many others each beats significantly, as the Medical Segmentation Decathlon does.

    A run beats another if Wilcoxon's one-sided signed-rank test is significant at ALPHA, not adjusted, and there are at
    least five untied pairs: the exact p of four is at least 1 / 2**4. The test uses the normal approximation with
    continuity correction, drops zeros and corrects for ties. scipy.stats.wilcoxon takes twice as long for the draws.

    Args:
        values: (runs, cases), more is better; a pair with NaN is left out.
        draws: (resamples, cases) indices of cases; None takes the cases as they are.

    Returns: (runs,) ranks from 1, or (runs, resamples) with `draws`.
    """
    from scipy.special import ndtri

    array = np.asarray(values, dtype=np.float64)
    chosen = np.arange(array.shape[1])[None] if draws is None else draws
    beaten = np.zeros((len(array), len(chosen)))
    for first in range(len(array)):
        for second in range(first):
            sums, scale = _signed_ranks(array[first] - array[second], chosen)
            threshold = ndtri(1 - ALPHA) * scale + 1  # the sum moves in steps of 2; half of one is the correction
            beaten[first] += sums > threshold
            beaten[second] += -sums > threshold
    ranks = rank(beaten)
    return ranks[:, 0] if draws is None else ranks


def _signed_ranks(differences: Floats, draws: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Per draw: the sum of the signed ranks, 0 for too few pairs, and its standard deviation if signs are random.

    With mean ranks for ties, this deviation is the root of the sum of squared ranks, tie correction included.
    """
    from scipy.stats import rankdata

    rounded = np.round(np.nan_to_num(differences), _TIE_DECIMALS)[draws]  # an undefined pair is dropped like a zero
    zeros = rounded == 0
    ranks = rankdata(np.abs(rounded), axis=1) - zeros.sum(axis=1, keepdims=True)
    ranks[zeros] = 0
    enough = (~zeros).sum(axis=1) >= _FEWEST_ONE_SIDED
    return enough * (np.sign(rounded) * ranks).sum(axis=1), np.sqrt((ranks**2).sum(axis=1))


def rank_stability(ranks: ArrayLike, redrawn: ArrayLike) -> RankStability:
    """Describe the change from the (runs,) ranks of all cases to the (runs, resamples) ranks of redrawn cases."""
    drawn = np.asarray(redrawn, dtype=np.float64)
    taus = kendall_tau(ranks, drawn)
    defined = taus[~np.isnan(taus)]
    return RankStability(
        intervals=tuple(_percentiles(row, LEVEL, "inverted_cdf") for row in drawn),  # of ranks that occurred
        first=tuple((drawn == 1).mean(axis=1).tolist()),
        kendall_tau=float(defined.mean()) if defined.size else None,
        tau_interval=_percentiles(defined, LEVEL) if defined.size else None,
        undefined=1 - defined.size / taus.size,
    )


def kendall_tau(ranks: ArrayLike, others: ArrayLike) -> Floats:
    """Kendall's tau-b of a (runs,) ranking with each of (runs, rankings) others; NaN if either is one big tie.

    scipy.stats.kendalltau takes one pair at a time; the draws of a ranking are many.
    """
    one, many = np.asarray(ranks, dtype=np.float64), np.asarray(others, dtype=np.float64)
    first, second = np.triu_indices(len(one), k=1)
    own = np.sign(one[first] - one[second])[:, None]
    theirs = np.sign(many[first] - many[second])
    untied = np.sqrt((own**2).sum() * (theirs**2).sum(axis=0))
    tau: Floats = np.full(untied.shape, np.nan)
    np.divide((own * theirs).sum(axis=0), untied, out=tau, where=untied > 0)
    return tau


def ranking_draws(num_cases: int) -> NDArray[np.int64]:
    """(RANKING_RESAMPLES, cases): the redrawn cases that all rankings of a comparison share."""
    return np.concatenate(list(_case_draws(num_cases, RANKING_RESAMPLES, SEED)))


def _case_draws(num_cases: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """(resamples, cases) indices of cases drawn with replacement, some rows at a time to save memory."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // num_cases)
    for start in range(0, resamples, step):
        yield rng.integers(num_cases, size=(min(step, resamples - start), num_cases))


def _percentiles(values: Floats, level: float, method: Literal["linear", "inverted_cdf"] = "linear") -> Interval:
    low, high = np.percentile(values, (50 * (1 - level), 50 * (1 + level)), method=method).tolist()
    return low, high
