"""Whether runs on the same cases differ: paired differences, tests, corrections, ranks and how stable they are.

Pure functions of arrays; docs/comparing_runs.md says why each is as it is. scipy.stats takes a second to import, so
the functions that need it do so themselves.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Better = Literal["higher", "lower", "zero"]

LEVEL = 0.95  # of every interval
ALPHA = 0.05  # of every statement that a difference is significant
SEED = 0
RESAMPLES = 10_000  # of a mean
RANKING_RESAMPLES = 1_000  # of a ranking
FEWEST_UNTIED = 6  # two-sided p is at least 2 / 2**n: 0.0625 for n = 5, 0.031 for n = 6
_FEWEST_ONE_SIDED = 5  # 1 / 2**n: 0.0625 for n = 4, 0.031 for n = 5
_TIE_DECIMALS = 12  # machines sum in other orders; what differs by less than that is the same value
_CHUNK = 1_000_000  # indices drawn at a time


@dataclass(frozen=True)
class PairedDifference:
    """A run against the baseline on the cases where both are defined.

    mean: of run minus baseline, in the metric's unit; for a metric that is best at zero, of the magnitudes.
    interval: bootstrap, of that mean; None for fewer than two pairs.
    wins, ties, losses: cases in which the run is better than, equal to, worse than the baseline.
    p_value: Wilcoxon signed-rank, two-sided, not yet adjusted; None without a pair.
    left_out: cases in which the run or the baseline is undefined.
    """

    pairs: int
    left_out: int
    mean: float | None
    interval: tuple[float, float] | None
    wins: int
    ties: int
    losses: int
    p_value: float | None


@dataclass(frozen=True)
class RankStability:
    """What becomes of a ranking when the cases are drawn again. `intervals` and `first` have one entry per run.

    intervals: percentiles of the rank over the draws, at LEVEL.
    first: share of the draws in which the run has rank 1, shared or not.
    kendall_tau: mean over the draws of Kendall's tau-b with the ranking of all cases, and
    tau_interval: its percentiles; both None if tau is undefined in every draw, as when all runs share a rank.
    undefined: share of the draws in which tau is undefined.
    """

    intervals: tuple[tuple[float, float], ...]
    first: tuple[float, ...]
    kendall_tau: float | None
    tau_interval: tuple[float, float] | None
    undefined: float


def bootstrap_interval_of_mean(
    values: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float] | None:
    """Percentile bootstrap of the mean, cases drawn with replacement.

    values: (cases,) finite.
    Returns: the interval's ends; None for fewer than two values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size < 2:
        return None
    draws = _case_draws(array.size, resamples, seed)
    return _percentiles(np.concatenate([array[chunk].mean(axis=1) for chunk in draws]), level)


def paired_difference(values: ArrayLike, baseline: ArrayLike, better: Better = "higher") -> PairedDifference:
    """Compare two runs case by case.

    values, baseline: (cases,) of the same cases in the same order; NaN where undefined.
    better: which values are good: the higher, the lower, or those nearest to zero.
    """
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
    """Two-sided p value of Wilcoxon's signed-rank test; zeros are dropped before ranking, as Wilcoxon did.

    differences: (pairs,) finite.
    Returns: exact up to 50 differences of distinct size, or up to 13 with ties; else from the normal approximation,
        corrected for ties. 1.0 if every difference is zero, None if there is none at all.
    """
    from scipy.stats import wilcoxon

    array = np.asarray(differences, dtype=np.float64)
    untied = array[array != 0]
    if not untied.size:
        return 1.0 if array.size else None
    return float(wilcoxon(untied).pvalue)


def holm(p_values: Iterable[float | None]) -> list[float | None]:
    """Holm's step-down adjustment: compare what comes back with ALPHA. None stays None and counts as no test."""
    given = list(p_values)
    order = sorted((p, index) for index, p in enumerate(given) if p is not None)
    adjusted: list[float | None] = [None] * len(given)
    largest = 0.0
    for place, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p))
        adjusted[index] = largest
    return adjusted


def goodness(values: ArrayLike, better: Better) -> NDArray[np.float64]:
    """Values turned so that more is better."""
    array = np.asarray(values, dtype=np.float64)
    if better == "higher":
        return array
    return -np.abs(array) if better == "zero" else -array


def rank(scores: ArrayLike) -> NDArray[np.float64]:
    """Ranks along the first axis, the highest score first; runs with the same score share the best of their ranks."""
    from scipy.stats import rankdata

    ranks: NDArray[np.float64] = rankdata(-np.asarray(scores, dtype=np.float64), method="min", axis=0).astype(float)
    return ranks


def significance_ranks(values: ArrayLike, draws: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Rank runs by how many others each beats significantly, as the Medical Segmentation Decathlon does.

    One run beats another if Wilcoxon's signed-rank test, one-sided, at ALPHA, not adjusted, says so (normal
    approximation with continuity correction, zeros dropped, ties corrected for) and there are five untied pairs: the
    exact p of four is at least 1 / 2**4.

    values: (runs, cases), more is better, NaN where undefined (such a pair is left out).
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


def rank_stability(ranks: ArrayLike, redrawn: ArrayLike) -> RankStability:
    """Describe how a ranking changes with the cases.

    ranks: (runs,) of all cases. redrawn: (runs, resamples) of redrawn ones.
    """
    drawn = np.asarray(redrawn, dtype=np.float64)
    taus = kendall_tau(ranks, drawn)
    defined = taus[~np.isnan(taus)]
    return RankStability(
        intervals=tuple(_percentiles(row, LEVEL, "inverted_cdf") for row in drawn),  # of ranks that occurred
        first=tuple(float(share) for share in (drawn == 1).mean(axis=1)),
        kendall_tau=float(defined.mean()) if defined.size else None,
        tau_interval=_percentiles(defined, LEVEL) if defined.size else None,
        undefined=1 - defined.size / taus.size,
    )


def kendall_tau(ranks: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """Kendall's tau-b of one ranking with many: 1 is the same order, -1 the reverse, NaN if either is one big tie.

    ranks: (runs,). others: (runs, rankings).
    Returns: (rankings,).
    """
    one, many = np.asarray(ranks, dtype=np.float64), np.asarray(others, dtype=np.float64)
    first, second = np.triu_indices(len(one), k=1)
    own = np.sign(one[first] - one[second])[:, None]
    theirs = np.sign(many[first] - many[second])
    untied = np.sqrt((own**2).sum() * (theirs**2).sum(axis=0))
    tau: NDArray[np.float64] = np.full(untied.shape, np.nan)
    np.divide((own * theirs).sum(axis=0), untied, out=tau, where=untied > 0)
    return tau


def ranking_draws(num_cases: int) -> NDArray[np.int64]:
    """The redrawn cases that every ranking of a comparison shares: (RANKING_RESAMPLES, cases)."""
    return np.concatenate(list(_case_draws(num_cases, RANKING_RESAMPLES, SEED)))


def _case_draws(num_cases: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Indices of cases, (resamples, cases) in all, some rows at a time so that many cases cost little memory."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // num_cases)
    for start in range(0, resamples, step):
        yield rng.integers(num_cases, size=(min(step, resamples - start), num_cases))


def _percentiles(
    values: NDArray[np.float64], level: float, method: Literal["linear", "inverted_cdf"] = "linear"
) -> tuple[float, float]:
    low, high = np.percentile(values, (50 * (1 - level), 50 * (1 + level)), method=method)
    return float(low), float(high)


def _signed_ranks(
    differences: NDArray[np.float64], draws: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per draw: the sum of the signed ranks, 0 for too few pairs, and its standard deviation if signs were a coin's.

    With mean ranks for ties, that deviation is the root of the sum of squared ranks, tie correction included.
    """
    from scipy.stats import rankdata

    rounded = np.round(np.nan_to_num(differences), _TIE_DECIMALS)[draws]  # undefined: dropped, as a zero is
    zeros = rounded == 0
    ranks = rankdata(np.abs(rounded), axis=1) - zeros.sum(axis=1, keepdims=True)
    ranks[zeros] = 0
    enough = (~zeros).sum(axis=1) >= _FEWEST_ONE_SIDED
    return enough * (np.sign(rounded) * ranks).sum(axis=1), np.sqrt((ranks**2).sum(axis=1))
