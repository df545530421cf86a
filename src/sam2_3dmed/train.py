"""From a folder of labelled volumes to a run folder: what the `train` command does, step by step."""

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch

from sam2_3dmed.config import Plan, RunConfig
from sam2_3dmed.data.cache import CaseCache, build_cache
from sam2_3dmed.data.catalog import Catalog, read_catalog
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan, read_plan_yaml
from sam2_3dmed.data.splits import Split, split_cases
from sam2_3dmed.errors import DataError, TrainingError
from sam2_3dmed.evaluation.cases import Evaluation, evaluate_cases
from sam2_3dmed.first_weights import check_adaptation, make_model, remake_model
from sam2_3dmed.inference.cohort import Results, predict_cohort
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.predictor import Predictor
from sam2_3dmed.model.adapt import merge_lora
from sam2_3dmed.model.network import SAM2For3dMed
from sam2_3dmed.pool import progress_bar
from sam2_3dmed.runs import (
    CONFIG_FILE,
    MODEL_FILE,
    RunRecord,
    load_predictor,
    log_to,
    make_predictor,
    remember_data,
    save_model,
)
from sam2_3dmed.termination import Terminated, raising_terminated
from sam2_3dmed.training.checkpoints import newest_whole_state
from sam2_3dmed.training.feature_cache import require_frozen
from sam2_3dmed.training.fit import FitResult, fit, try_rates
from sam2_3dmed.training.loggers import require_loggers
from sam2_3dmed.training.memory_budget import fit_to_memory
from sam2_3dmed.training.parallel import Team
from sam2_3dmed.training.trainer import seed_everything, use_bf16

SPLIT_FILE = "split.json"
_CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRequest:
    """What a training run is asked for.

    data: the data set's folder; out: the run folder, none for runs/NAME; plan: a YAML file instead of the proposed
    plan;
    fold: (i, n), 1 <= i <= n; resume: go on with the run in `out`, with the recipe, plan and split it has; cache:
    folder for prepared cases, none for one beside the run folders; gpu_memory: what a GPU has, in GB, into which a step
    is made to fit; devices, nodes: see `Team.find`.
    """

    data: Path
    out: Path | None = None
    config: RunConfig = field(default_factory=RunConfig)
    weights: str = "auto"
    plan: Path | None = None
    fold: tuple[int, int] | None = None
    resume: bool = False
    cache: Path | None = None
    gpu_memory: float | None = None
    devices: int | None = None
    nodes: int | None = None


def train_run(request: TrainRequest) -> Path | None:
    """Train, and leave a run folder; each process that takes part in a run calls this.

    Returns: the run folder; None in a process that only helps the first one.
    Raises:
        UserError: data, plan or weights that cannot be used; a run folder that is there already, or, to resume, is not.
        Terminated: SIGTERM came; `resume` goes on from there.
    """
    team = Team.find(request.devices, request.nodes)
    if not team.first:
        _help(request, team)
        return None
    try:
        return _lead(request, team)
    finally:
        team.agree(False)  # if the others still wait, there is nothing to do for them


def _help(request: TrainRequest, team: Team) -> None:
    """Train with the process that prepares the run and writes what it leaves."""
    logging.getLogger("sam2_3dmed").setLevel(logging.ERROR)  # the first one speaks
    if not team.agree():
        return
    catalog = read_catalog(request.data)
    folder = request.out or default_folder(catalog)
    with suppress(Terminated, TrainingError), raising_terminated():  # the first one meets the same, and says so
        start = _start(request, catalog, folder, RunRecord.read(folder), team)
        _fit(start, folder, request.resume, team)


def _lead(request: TrainRequest, team: Team) -> Path:
    catalog = read_catalog(request.data)
    folder = request.out or default_folder(catalog)
    _check_folder(folder, request.resume)
    if request.resume and (folder / MODEL_FILE).is_file():
        logger.info("%s: this run is finished", folder)
        return folder
    if not request.resume:
        check_adaptation(request.config, request.weights)  # here, since reading the data set can take minutes
        require_loggers(request.config.training.loggers)
    with _writing(folder), log_to(folder / "log.txt"), raising_terminated():
        _train(request, catalog, folder, team)
    return folder


def find_learning_rate(request: TrainRequest) -> tuple[float, Path]:
    """Try learning rates on the weights that training would begin with, and keep nothing but a table and a picture.

    Returns: the rate to begin with, and the folder of learning_rates.csv and learning_rates.png: the run folder.
    Raises:
        UserError: as for training; or no rate makes the loss fall.
    """
    catalog = read_catalog(request.data)
    folder = request.out or default_folder(catalog)
    check_adaptation(request.config, request.weights)
    with _writing(folder):
        start = _start(request, catalog, folder, None, Team())
        test = try_rates(start.network, start.predictor, training=start.training, config=request.config, folder=folder)
        test.write(folder)
    return test.suggestion, folder


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A folder to be written into, which is made.

    Raises:
        DataError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise DataError(
            f"{folder}: cannot be written: {error.strerror}; what is there stays, and --resume goes on from it"
        ) from None


def default_folder(catalog: Catalog) -> Path:
    """runs/NAME, NAME being that of the data set without what has a meaning in paths."""
    return Path("runs") / (re.sub(r"[^\w.-]+", "_", catalog.name).strip("._") or "run")


def _train(request: TrainRequest, catalog: Catalog, folder: Path, team: Team) -> None:
    old = RunRecord.read(folder) if request.resume else None
    start = _start(request, catalog, folder, old, team)
    if request.gpu_memory is not None:
        record = start.record
        recipe = fit_to_memory(record.recipe, record.plan, start.predictor, request.gpu_memory, team.size)
        start = replace(start, record=record.model_copy(update={"recipe": recipe}))
    if old is None:
        start.split.write(folder / SPLIT_FILE)
        start.record.write(folder)  # last: it is what makes the folder a run
    remember_data(folder, request.data)
    team.agree()
    result = _fit(start, folder, request.resume, team)
    if start.record.recipe.model.adapt == "lora":
        merge_lora(start.network.encoder)
    save_model(start.network, start.record, folder)
    logger.info(
        "trained %d steps in %d epochs; best validation Dice %.4f",
        result.steps,
        result.epochs,
        result.best_dice,
    )


@dataclass(frozen=True)
class _Start:
    """All that training begins with."""

    split: Split
    network: SAM2For3dMed
    record: RunRecord
    predictor: Predictor
    training: CaseCache
    validation: CaseCache


def _start(request: TrainRequest, catalog: Catalog, folder: Path, old: RunRecord | None, team: Team) -> _Start:
    """old: of the run that is resumed, or that another process has begun."""
    config = old.recipe if old else request.config
    split = Split.read(folder / SPLIT_FILE) if old else split_cases(catalog.names, config.split, request.fold)
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
    network, record = _network(old, folder) if old else make_model(config, plan, request.weights)
    logger.info(
        "model: size %s at %d pixels, K = %d, weights %s, encoder %s",
        *(record.model.size, record.model.image_size, plan.num_classes, record.weights),
        "trains" if record.encoder_trains else f"frozen, adapts by {config.model.adapt or 'nothing'}",
    )
    if config.feature_cache.views > 0:
        require_frozen(network.encoder)
    with progress_bar("Preparing cases") if team.first else nullcontext() as progress:
        cache = build_cache(opened, plan, _cache_folder(request, plan, folder), progress=progress)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = make_predictor(network, record, bf16=use_bf16(config.training.precision, device))
    return _Start(split, network, record, predictor, cache.subset(split.train), cache.subset(split.validation))


def _fit(start: _Start, folder: Path, resume: bool, team: Team) -> FitResult:
    return fit(
        start.network,
        start.predictor,
        training=start.training,
        validation=start.validation,
        config=start.record.recipe,
        folder=folder,
        resume=resume,
        team=team,
    )


def _network(old: RunRecord, folder: Path) -> tuple[SAM2For3dMed, RunRecord]:
    """The network of a run to resume; with its first weights, if it was stopped before there was a checkpoint."""
    if newest_whole_state(folder / "checkpoints") is not None:
        return remake_model(old), old
    return make_model(old.recipe, old.plan, old.weights)[0], old


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


def _plan(catalog: Catalog, split: Split, path: Path | None) -> Plan:
    """The given plan, or one proposed from the training cases alone, so that nothing leaks from the others."""
    if path is not None:
        return read_plan_yaml(path)
    with progress_bar("Reading cases") as progress:
        found = fingerprint(catalog, progress=progress)
    return propose_plan(found, split.train)


def _cache_folder(request: TrainRequest, plan: Plan, folder: Path) -> Path:
    # Runs that prepare the same files in the same way share them; any other run keeps its own.
    key = sha256(f"{request.data.resolve()} {plan.preprocessing} {plan.label_values}".encode()).hexdigest()[:12]
    return request.cache or folder.parent / ".cache" / key
