"""From a folder of labelled volumes to a run folder: what the `train` command does, step by step."""

import errno
import logging
import re
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch

from sam2_3dmed.config import Plan, RunConfig
from sam2_3dmed.data.cache import CaseCache, build_cache
from sam2_3dmed.data.catalog import Catalog, read_catalog
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan, read_plan_yaml
from sam2_3dmed.data.splits import Split, make_folds, make_split
from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.cases import Evaluation, evaluate_cases
from sam2_3dmed.first_weights import make_model
from sam2_3dmed.inference.cohort import Results, predict_cohort
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.pool import progress_bar
from sam2_3dmed.runs import (
    CONFIG_FILE,
    MODEL_FILE,
    RunRecord,
    load_predictor,
    log_to,
    make_predictor,
    rebuild,
    remember_data,
    save_model,
)
from sam2_3dmed.training.fit import fit
from sam2_3dmed.training.trainer import seed_everything, use_bf16

SPLIT_FILE = "split.json"
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRequest:
    """What a training run is asked for.

    data: the data set's folder; out: the run folder, none for runs/NAME; plan: a YAML file instead of the proposed
    plan;
    fold: (i, n), 1 <= i <= n; resume: go on with the run in `out`, with the recipe, plan and split it has; cache:
    folder for prepared cases, none for one beside the run folders.
    """

    data: Path
    out: Path | None = None
    config: RunConfig = field(default_factory=RunConfig)
    weights: str = "auto"
    plan: Path | None = None
    fold: tuple[int, int] | None = None
    resume: bool = False
    cache: Path | None = None


def train_run(request: TrainRequest) -> Path:
    """Train, and leave a run folder.

    Returns: the run folder.
    Raises:
        UserError: data, plan or weights that cannot be used; a run folder that is there already, or, to resume, is not.
    """
    catalog = read_catalog(request.data)
    folder = request.out or default_folder(catalog)
    _check_folder(folder, request.resume)
    if request.resume and (folder / MODEL_FILE).is_file():
        logger.info("%s: this run is finished", folder)
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log_to(folder / "log.txt"):
            _train(request, catalog, folder)
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise DataError(
            f"{folder}: cannot be written: {error.strerror}; what is there stays, and --resume goes on from it"
        ) from None
    return folder


def default_folder(catalog: Catalog) -> Path:
    """runs/NAME, NAME being that of the data set without what has a meaning in paths."""
    return Path("runs") / (re.sub(r"[^\w.-]+", "_", catalog.name).strip("._") or "run")


def _train(request: TrainRequest, catalog: Catalog, folder: Path) -> None:
    old = RunRecord.read(folder) if request.resume else None
    config = old.recipe if old else request.config
    split = Split.read(folder / SPLIT_FILE) if old else _split(catalog, config, request.fold)
    split.require_known(catalog.names)
    opened = catalog.subset({*split.train, *split.validation})  # the test cases stay closed
    plan = old.plan if old else _plan(opened, split, request.plan)
    logger.info(
        "%s: %d cases to train on, %d to validate, %d to test; D = %d, %s slices",
        *(catalog.name, len(split.train), len(split.validation), len(split.test)),
        *(config.window_slices or plan.window_slices, plan.slicing_axis),
    )
    # Weights first: they fail in seconds, the cache takes minutes.
    seed_everything(config.training.seed)
    network, record = (rebuild(old), old) if old else make_model(config, plan, request.weights)
    logger.info(
        "model: size %s at %d pixels, K = %d, weights %s, encoder %s",
        *(record.model.size, record.model.image_size, plan.num_classes, record.weights),
        "trains" if record.encoder_trains else "frozen",
    )
    cache = _cache(request, opened, plan, folder)
    if old is None:
        split.write(folder / SPLIT_FILE)
        record.write(folder)  # last: it is what makes the folder a run
    remember_data(folder, request.data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = fit(
        network,
        make_predictor(network, record, bf16=use_bf16(config.training.precision, device)),
        training=cache.subset(split.train),
        validation=cache.subset(split.validation),
        config=config,
        folder=folder,
        resume=request.resume,
    )
    save_model(network, record, folder)
    logger.info(
        "trained %d steps in %d epochs; best validation Dice %.4f",
        result.steps,
        result.epochs,
        result.best_dice,
    )


def test_run(folder: Path, data: Path) -> Evaluation:
    """Predict and score the test cases of a run; `predictions/` and `evaluation/` go into its folder.

    Raises:
        UserError: a run that is not finished, other data than it was trained on, or a test case that fails.
    """
    record, split, catalog = RunRecord.read(folder), Split.read(folder / SPLIT_FILE), read_catalog(data)
    split.require_known(catalog.names)
    cases = [case for case in catalog.cases if case.name in split.test and case.label]
    predictor = load_predictor(folder)
    with progress_bar("Predicting the test set") as progress:
        outcomes = predict_cohort(
            predictor, [Input(case.name, case.images) for case in cases], Results(folder / "predictions"), progress
        )
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise DataError("\n".join(failed))
    tolerances = dict.fromkeys((record.plan.nsd_tolerance_mm, 1.0))
    pairs = [(o.name, o.output, c.label) for o, c in zip(outcomes, cases, strict=True) if o.output and c.label]
    evaluation = evaluate_cases(pairs, record.plan.labels, tolerances)
    evaluation.write(folder / "evaluation")
    return evaluation


def _check_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder}: no run to resume here")
    if not resume and (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder}: there is a run here already; go on with it by --resume, or choose another --out")


def _split(catalog: Catalog, config: RunConfig, fold: tuple[int, int] | None) -> Split:
    options = config.split
    if fold is None:
        return make_split(
            catalog.names,
            seed=options.seed,
            test_fraction=options.test_fraction,
            validation_fraction=options.validation_fraction,
        )
    number, count = fold
    folds = make_folds(catalog.names, count, options.seed, validation_fraction=options.validation_fraction)
    return folds[number - 1]


def _plan(catalog: Catalog, split: Split, path: Path | None) -> Plan:
    """The given plan, or one proposed from the training cases alone, so that nothing leaks from the others."""
    if path is not None:
        return read_plan_yaml(path)
    with progress_bar("Reading cases") as progress:
        found = fingerprint(catalog, progress=progress)
    return propose_plan(found, split.train)


def _cache(request: TrainRequest, catalog: Catalog, plan: Plan, folder: Path) -> CaseCache:
    # Runs that prepare the same files in the same way share them; any other run keeps its own.
    key = sha256(f"{request.data.resolve()} {plan.preprocessing} {plan.label_values}".encode()).hexdigest()[:12]
    cache = request.cache or folder.parent / ".cache" / key
    with progress_bar("Preparing cases") as progress:
        return build_cache(catalog, plan, cache, progress=progress)
