"""Which scan, and which of its slices, to label next: where two views disagree, and unlike what is labelled already."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sam2_3dmed.config import InferenceConfig, changed
from sam2_3dmed.data.dataset import Case, read_case, read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import ConfigError, DataError, UserError
from sam2_3dmed.evaluation.masks import Floats
from sam2_3dmed.files.tables import csv_text
from sam2_3dmed.inference.inputs import find_inputs, require_unique_names
from sam2_3dmed.inference.logits_to_mask import slice_mask
from sam2_3dmed.inference.predictor import Predictor, empty_like, slice_logits
from sam2_3dmed.inference.tta import Forward
from sam2_3dmed.model.network import DecoderFeatures
from sam2_3dmed.processes.atomic import make_folder, write_text
from sam2_3dmed.report.build import environment
from sam2_3dmed.report.panels import Panel
from sam2_3dmed.report.planes import case_volumes, overlay
from sam2_3dmed.run.run_folder import SPLIT_FILE, load_model, read_sam2_record, remembered_data
from sam2_3dmed.volume.label_scheme import LabelScheme
from sam2_3dmed.volume.slices import array_axes, volume_to_slices
from sam2_3dmed.volume.volume import Volume

_APART = 0.1
"""Suggested slices lie at least this share of a scan apart."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examined:
    """What a model makes of a scan.

    Args:
        disagreement: (D,), of each slice: the sum of |p - q| over its places and classes, where p and q are the
            probabilities that the slice gets as it is and mirrored.
        found: the sum of p + q over the scan.
        features: (C,), the mean of the encoder's Z.
    """

    disagreement: Floats
    found: float
    features: Floats

    @property
    def share(self) -> float:
        """How much of what is found is not agreed on, 0 to 1; 0 where next to nothing is found."""
        return float(self.disagreement.sum() / (self.found + 1))


@dataclass(frozen=True)
class Suggestion:
    """A scan in the order in which scans should be labelled.

    Args:
        score: disagreement times distance, each as a share of the largest one when the scan was chosen.
        distance: to the nearest scan that is labelled or comes before, in standard deviations of the features.
        slices: the slices of most disagreement, counted from 0 as in the file, the most urgent first.
    """

    name: str
    score: float
    disagreement: float
    distance: float
    slices: tuple[int, ...]


class _Watched(Forward):
    """A forward pass that keeps the mean of the features of each slice it encodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._means: dict[int, Tensor] = {}

    def encode(self, start: int, stop: int) -> DecoderFeatures:
        features = super().encode(start, stop)
        means = features.z.float().mean(dim=(0, 3, 4)).cpu()
        self._means |= dict(zip(range(start, stop), means, strict=True))
        return features

    @property
    def mean_features(self) -> Floats:
        """The mean of all slices, (C,)."""
        mean: Floats = torch.stack(list(self._means.values())).mean(dim=0).numpy()
        return mean


class _Mirrored:
    """Slices (D, C, H, W) that are mirrored along W when they are asked for."""

    def __init__(self, slices: Any) -> None:
        self._slices, self.shape = slices, slices.shape

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, which: slice) -> NDArray[np.float32]:
        return np.ascontiguousarray(self._slices[which][..., ::-1])


def examine(predictor: Predictor, volume: Volume) -> tuple[Examined, Volume, Volume]:
    """Predict a scan as it is and mirrored, and compare the two.

    Returns: what was found, and both masks. Raises VolumeError if the model cannot take the scan.
    """
    slices = predictor.preprocessing.stack(volume)
    config = _as_it_is(predictor)
    scheme, axis = LabelScheme.of(predictor.labels), predictor.preprocessing.slicing_axis
    masks = [empty_like(volume, np.uint16) for _ in range(2)]
    own, mirrored = (volume_to_slices(mask, axis) for mask in masks)
    height, width = slices.shape[-2:]
    kept: dict[int, Tensor] = {}
    forward = _Watched(predictor.network.eval(), slices, config)
    for index, logits in slice_logits(forward, predictor.slab_slices):
        own[index] = slice_mask(logits, height, width, scheme).cpu().numpy()
        kept[index] = logits.half().cpu()
    disagreement, found = np.zeros(len(slices)), 0.0
    other = Forward(predictor.network, cast(Any, _Mirrored(slices)), config)
    for index, logits in slice_logits(other, predictor.slab_slices):
        turned = logits.flip(-1)
        mirrored[index] = slice_mask(turned, height, width, scheme).cpu().numpy()
        p, q = torch.sigmoid(kept.pop(index).float()), torch.sigmoid(turned.cpu())
        disagreement[index] = float((p - q).abs().sum())
        found += float((p + q).sum())
    return Examined(disagreement, found, forward.mean_features), masks[0], masks[1]


def _as_it_is(predictor: Predictor) -> InferenceConfig:
    """The model's way to predict, with one view of each slice."""
    return changed(predictor.config, {"flips": False, "shifts": False}, "inference")


@torch.inference_mode()
def mean_features(predictor: Predictor, volume: Volume) -> Floats:
    """The mean of the encoder's Z over a scan, (C,)."""
    forward = _Watched(predictor.network.eval(), predictor.preprocessing.stack(volume), _as_it_is(predictor))
    for first in range(0, len(forward.slices), forward.chunk):
        forward.encode(first, min(first + forward.chunk, len(forward.slices)))
    return forward.mean_features


def rank(
    examined: Mapping[str, Examined], known: Sequence[Floats], places: Mapping[str, Sequence[int]]
) -> list[Suggestion]:
    """Order scans by disagreement and by distance to what is labelled or comes before.

    Greedy: each time the scan of the highest product, so that scans which are much alike do not follow each other. It
    joins two known ideas, uncertainty (Lewis and Gale 1994) and the core-set (Sener and Savarese, ICLR 2018).

    Args:
        known: the features of labelled scans.
        places: of each scan, its slices by urgency.
    """
    features = np.array([scan.features for scan in examined.values()] + [*known])
    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1) / np.sqrt(features.shape[1])
    of_name, reference = dict(zip(examined, scaled, strict=False)), list(scaled[len(examined) :])
    left, order = dict.fromkeys(examined), []
    while left:
        distances = {n: min((float(np.linalg.norm(of_name[n] - r)) for r in reference), default=1.0) for n in left}
        most = max(max(distances.values()), 1e-12), max(max(examined[n].share for n in left), 1e-12)
        scores = {n: distances[n] / most[0] * examined[n].share / most[1] for n in left}
        best = max(left, key=lambda n: scores[n])
        order.append(Suggestion(best, scores[best], examined[best].share, distances[best], tuple(places[best])))
        reference.append(of_name[best])
        del left[best]
    return order


def urgent_slices(disagreement: Floats, count: int) -> list[int]:
    """The slices of most disagreement, the most urgent first, that lie apart from each other."""
    apart = max(1, round(_APART * len(disagreement)))
    chosen: list[int] = []
    for index in np.argsort(-disagreement, kind="stable").tolist():
        if len(chosen) < count and all(abs(index - other) >= apart for other in chosen):
            chosen.append(index)
    return chosen


def suggest(
    run: Path,
    scans: Sequence[Path],
    out: Path,
    *,
    slices: int = 3,
    data: Path | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Suggestion], dict[str, str]]:
    """Rank scans without labels, and write `suggestions.csv`, `slices.csv` and the page `suggestions.html` into `out`.

    Args:
        run: a run of SAM2-3dMed.
        slices: so many slices of each scan.
        data: the folder of the data set that the run was trained on; none for where it was then.

    Returns: the scans in their order, and the reason for each scan that failed.
    Raises: UserError for no such run, no scan that can be used, or files that cannot be written.
    """
    record = read_sam2_record(run, "suggest")
    if record.needs_reference:
        raise ConfigError(f"{run}: takes prompts, and a scan without a label has none")
    predictor = cast(Predictor, load_model(run, device=device))
    inputs = find_inputs(scans, predictor.num_channels)
    require_unique_names(inputs)
    make_folder(out)
    known = _known_features(run, predictor, data)
    examined: dict[str, Examined] = {}
    failures: dict[str, str] = {}
    panels: dict[str, list[Panel]] = {}
    places: dict[str, list[int]] = {}
    for done, item in enumerate(inputs, start=1):
        try:
            volume = item.read()
            found, *masks = examine(predictor, volume)
        except UserError as error:
            failures[item.name] = str(error)
        else:
            examined[item.name] = found
            urgent = urgent_slices(found.disagreement, slices)
            panels[item.name] = _panels(predictor, volume, masks, urgent)
            places[item.name] = [_in_file(volume, predictor, index) for index in urgent]
        progress(done, len(inputs))
    if not examined:
        raise DataError("\n".join(f"{name}: {reason}" for name, reason in failures.items()))
    order = rank(examined, known, places)
    _write(order, {item.name: item.source for item in inputs}, panels, predictor, run, out)
    return order, failures


def _known_features(run: Path, predictor: Predictor, data: Path | None) -> list[Floats]:
    """Of the run's training and validation cases; none, with a line in the log, where they are no longer there."""
    root = data or remembered_data(run)
    try:
        if root is None:
            raise DataError(f"{run}: does not say where its data set is")
        split, dataset = Split.read(run / SPLIT_FILE), read_dataset(root)
        split.require_known(dataset.names)
        cases: list[Case] = [case for case in dataset.cases if case.name in {*split.train, *split.validation}]
        return [mean_features(predictor, read_case(case)[0]) for case in cases]
    except UserError as error:
        if data is not None:
            raise
        logger.warning("%s; scans are compared with each other only, unless --data names it", error)
        return []


def _in_file(volume: Volume, predictor: Predictor, index: int) -> int:
    """The number of a slice of the model along the same axis of the file."""
    (along, *_), (step, *_) = array_axes(volume, predictor.preprocessing.slicing_axis)
    return volume.shape[along] - 1 - index if step.step == -1 else index


def _panels(predictor: Predictor, volume: Volume, masks: Sequence[Volume], urgent: Sequence[int]) -> list[Panel]:
    scheme = LabelScheme.of(predictor.labels)
    case = case_volumes(masks[1], masks[0], scheme, predictor.preprocessing, volume)
    return [
        replace(
            overlay(case, index),
            title=f"slice {_in_file(volume, predictor, index)}",
            description="outlines of the slice as it is in colour, of the mirrored one dashed in white",
        )
        for index in urgent
    ]


def _write(
    order: Sequence[Suggestion],
    sources: Mapping[str, str],
    panels: Mapping[str, list[Panel]],
    predictor: Predictor,
    run: Path,
    out: Path,
) -> None:
    number = partial(round, ndigits=4)
    scans = [
        [place, s.name, sources[s.name], number(s.score), number(s.disagreement), number(s.distance)]
        for place, s in enumerate(order, start=1)
    ]
    slices = [[place, s.name, index] for place, s in enumerate(order, start=1) for index in s.slices]
    columns = ["rank", "case", "source", "score", "disagreement", "distance"]
    write_text(out / "suggestions.csv", csv_text([columns, *scans]))
    write_text(out / "slices.csv", csv_text([["rank", "case", "slice"], *slices]))
    page = environment().get_template("suggestions.html")
    labels = LabelScheme.of(predictor.labels).parts
    html = page.render(order=order, panels=panels, labels=labels, run=run.resolve().name)
    write_text(out / "suggestions.html", html)
