"""From a folder of labelled volumes to a run folder: training, the test set, and the search for a learning rate."""

import errno
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from sam2_3dmed.config import Plan, SplitConfig
from sam2_3dmed.data.dataset import Case, MedicalDataset, read_dataset, read_unlabelled
from sam2_3dmed.data.fingerprint import cases_with_foreground, fingerprint
from sam2_3dmed.data.plan import propose_plan, read_plan_yaml
from sam2_3dmed.data.splits import Split, split_cases
from sam2_3dmed.dicom.codes import read_codes
from sam2_3dmed.errors import ConfigError, DataError, TrainingError, shown
from sam2_3dmed.evaluation.cases import Evaluation, evaluate_cases
from sam2_3dmed.evaluation.metrics import Scoring
from sam2_3dmed.inference.batch import Job, predict_batch
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.processes.atomic import require_path
from sam2_3dmed.processes.lock import locked
from sam2_3dmed.processes.map_cases import progress_bar
from sam2_3dmed.processes.signals import Terminated, raising_terminated
from sam2_3dmed.run.first_weights import find_weights, recipe_for_weights
from sam2_3dmed.run.run_config import CONFIG_FILE, RunRecord
from sam2_3dmed.run.run_folder import (
    MODEL_FILE,
    SPLIT_FILE,
    load_model,
    log_to,
    read_record,
    remember_codes,
    remember_data,
    remembered_data,
    remembered_without_labels,
)
from sam2_3dmed.run.systems import OURS, Preparation, TrainingRun, find_system, require_recipe
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.loop import FitResult

_CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRequest:
    """What a training run is asked for.

    Args:
        data: the data set's folder.
        out: the run folder; none for runs/NAME of the data set.
        recipe: a name, as for `train --recipe`, or a recipe of the system (`find_system(system).recipe(...)`).
        settings: changes of a named recipe, such as `training.epochs=50`.
        weights: `auto`, a hub id, a Hugging Face folder, a Meta `.pt`, `nano`, `none`, or one of our run folders.
        plan: a YAML file instead of the proposed plan.
        fold: (i, n), 1 <= i <= n: fold i of n is the test set.
        resume: go on with the run in `out`, with the recipe, plan and split that it has.
        cache: folder for prepared cases; none for one beside the run folders.
        gpu_memory: of a GPU in GB, into which a training step must fit.
        devices, nodes: see `DistributedContext.find`.
        system: the name of a system in the registry.
        unlabelled: a folder of further scans without labels, for a recipe with `training.unlabelled_fraction`.
    """

    data: Path
    out: Path | None = None
    recipe: Any = "auto"
    settings: Sequence[str] = ()
    weights: str = "auto"
    plan: Path | None = None
    fold: tuple[int, int] | None = None
    resume: bool = False
    cache: Path | None = None
    gpu_memory: float | None = None
    devices: int | None = None
    nodes: int | None = None
    system: str = OURS
    unlabelled: Path | None = None


def train(request: TrainRequest) -> Path | None:
    """Train, and leave a run folder. Each process that takes part in a run calls this.

    Returns:
        The run folder; None in a process that only helps the first one.

    Raises:
        UserError: data, plan or weights that cannot be used; a run folder that is there already, or, to resume, is not.
        Terminated: SIGTERM came; `resume` goes on from there.
    """
    distributed = DistributedContext.find(request.devices, request.nodes)
    if not distributed.first:
        _help_to_train(request, distributed)
        return None
    try:
        dataset = read_dataset(request.data)
        folder = request.out or default_folder(dataset)
        if new_or_resumed(folder, request.resume):
            recipe = None
            if not request.resume:
                recipe, weights = _checked_recipe(request, len(dataset.cases))
                request = replace(request, weights=weights)
            with writing_run(folder):
                _train(request, recipe, dataset, folder, distributed)
        return folder
    finally:
        distributed.start_barrier(False)  # if the others still wait, there is nothing to do for them


def _help_to_train(request: TrainRequest, distributed: DistributedContext) -> None:
    """Train with the process that prepares the run and writes its files."""
    logging.getLogger("sam2_3dmed").setLevel(logging.ERROR)
    if not distributed.start_barrier():
        return
    dataset = read_dataset(request.data)
    folder = request.out or default_folder(dataset)
    with suppress(Terminated, TrainingError), raising_terminated():  # the first process reports the same
        run, *_ = _start(request, None, dataset, folder, read_record(folder), distributed)
        run.fit(resume=request.resume)


def _train(
    request: TrainRequest, recipe: Any, dataset: MedicalDataset, folder: Path, distributed: DistributedContext
) -> None:
    described = request.data / "dataset.json"
    codes = read_codes(described) if described.is_file() else {}  # before the cases are read, which takes minutes
    old = read_record(folder) if request.resume else None
    run, split, unlabelled = _start(request, recipe, dataset, folder, old, distributed)
    remember_data(
        folder, request.data, _folder_without_labels(request, folder, old), [case.name for case in unlabelled]
    )
    remember_codes(folder, codes)
    if old is None:
        split.write(folder / SPLIT_FILE)
        run.record.write(folder)  # last: it makes the folder a run
    distributed.start_barrier()
    log_result(run.fit(resume=request.resume))
    run.save()


def log_result(result: FitResult) -> None:
    """How a run ended, in a line of its log."""
    text = "trained %d steps in %d epochs; best validation Dice %.4f"
    logger.info(text, result.steps, result.epochs, result.best_dice)


def _checked_recipe(request: TrainRequest, cases: int) -> tuple[Any, str]:
    """The recipe and the weights of a new run; a ConfigError for options that do not go together.

    cases: the number of labelled ones.
    """
    system = find_system(request.system)
    weights = find_weights(request.weights) if system.name == OURS else request.weights
    recipe = request.recipe
    if isinstance(recipe, str):
        recipe = recipe_for_weights(system, weights, recipe, request.settings, cases)
    elif request.settings:
        raise ConfigError("settings change a recipe that is named; this one is whole")
    require_recipe(system, recipe)
    system.check(recipe, weights=weights, gpu_memory=request.gpu_memory)
    if request.unlabelled is not None and not system.learns_without_labels(recipe):
        raise ConfigError(
            f"--unlabelled: {system.name} learns from no scans without labels"
            + (" unless training.unlabelled_fraction is above 0" if system.name == OURS else "")
        )
    if request.unlabelled is not None and not request.unlabelled.is_dir():
        raise DataError(f"{request.unlabelled}: no such folder")
    return recipe, weights


def _start(
    request: TrainRequest,
    recipe: Any,
    dataset: MedicalDataset,
    folder: Path,
    old: RunRecord | None,
    distributed: DistributedContext,
) -> tuple[TrainingRun, Split, tuple[Case, ...]]:
    """A run that is ready to train, with its scans without labels.

    old: of the run that is resumed, or that another process has begun.
    """
    recipe = old.recipe if old else recipe
    system = find_system(old.system if old else request.system)
    system.require_labels(dataset.labels, recipe)  # before the cases are read
    if old:
        split, plan = Split.read(folder / SPLIT_FILE), old.plan
        split.require_known(dataset.names)
    else:
        split, plan = choose_split_and_plan(dataset, recipe.split, request.fold, request.plan)
    opened = dataset.subset({*split.train, *split.validation})  # the test cases stay closed
    unlabelled: tuple[Case, ...] = ()
    if system.learns_without_labels(recipe):
        unlabelled = _without_labels(dataset, split, _folder_without_labels(request, folder, old))
        if old:
            unlabelled = _the_same(unlabelled, remembered_without_labels(folder))
        plan = plan.with_ignore_label()
    system.require_labels(plan.scheme, recipe)
    logger.info(
        "%s: %d cases to train on, %d to validate, %d to test; %s slices",
        *(dataset.name, len(split.train), len(split.validation), len(split.test), plan.slicing_axis),
    )
    preparation = Preparation(
        recipe=recipe,
        plan=plan,
        split=split,
        dataset=opened,
        folder=folder,
        cache_folder=request.cache or folder.parent / ".cache" / _cache_key(request.data, plan),
        distributed=distributed,
        weights=request.weights,
        gpu_memory=None if old else request.gpu_memory,
        resumed=old,
        unlabelled=unlabelled,
    )
    return system.start(preparation), split, unlabelled


def _cache_key(data: Path, plan: Plan) -> str:
    """Names the folder for prepared cases of a data set, one for each way to prepare them."""
    prepared_by = f"{plan.preprocessing} {plan.label_values}"
    if plan.regions or plan.ignore_label is not None:
        prepared_by += f" {plan.regions} {plan.ignore_label}"
    return sha256(f"{data.resolve()} {prepared_by}".encode()).hexdigest()[:12]


def _folder_without_labels(request: TrainRequest, folder: Path, old: RunRecord | None) -> Path | None:
    """The folder of further scans that is asked for, or that a run which goes on has had so far."""
    return request.unlabelled or (remembered_data(folder, "unlabelled") if old else None)


def _the_same(found: Sequence[Case], names: Sequence[str]) -> tuple[Case, ...]:
    """The scans with which a run began, without those that have come since. Raises DataError if some are gone."""
    if missing := sorted(set(names) - {case.name for case in found}):
        raise DataError(
            f"{shown(missing[0])}: the run learns from this scan without a label, and it is no longer there; "
            "--unlabelled DIR names the folder, if it has moved"
        )
    return tuple(case for case in found if case.name in names)


def _without_labels(dataset: MedicalDataset, split: Split, folder: Path | None) -> tuple[Case, ...]:
    """All scans to learn from without labels: the data set's, those of a folder, and cases that are left out.

    Left out are those beyond `split.training_cases`. Raises DataError if there are none, or two have one name.
    """
    used = {*split.train, *split.validation, *split.test}
    left = [replace(case, label=None) for case in dataset.cases if case.name not in used]
    num_channels = len(dataset.cases[0].images)
    further = read_unlabelled(folder, num_channels) if folder else []
    found = [*left, *dataset.unlabelled, *further]
    counts = Counter([*used, *(case.name for case in found)])
    if twice := [case for case in found if counts[case.name] > 1]:
        raise DataError(f"{twice[0].images[0]}: another case has its name, {shown(twice[0].name)}")
    if not found:
        raise DataError(
            f"{dataset.name}: training.unlabelled_fraction is above 0, and there is no scan without a label; "
            "--unlabelled DIR names a folder of some"
        )
    logger.info("%d scans without labels take part", len(found))
    return tuple(found)


def choose_split_and_plan(
    dataset: MedicalDataset, options: SplitConfig, fold: tuple[int, int] | None = None, path: Path | None = None
) -> tuple[Split, Plan]:
    """A split that is stratified by foreground, and the plan of a file or one of the training cases alone.

    The test cases stay closed, so that nothing leaks from them.
    """
    split = split_cases(dataset.names, options.model_copy(update={"training_cases": None}), fold)
    opened = dataset.subset({*split.train, *split.validation})
    with progress_bar("Reading cases") as progress:
        if path is None:
            found = fingerprint(opened, progress=progress)
            holding = found.with_foreground
        else:
            plan = read_plan_yaml(path)
            holding = cases_with_foreground(opened, plan.scheme.file_values, progress=progress)
    if not holding:
        raise DataError(f"{dataset.name}: no label holds any foreground")
    split = split_cases(dataset.names, options, fold, foreground=holding)
    _log_empty_cases(split, holding)
    return split, propose_plan(found, split.train) if path is None else plan


def _log_empty_cases(split: Split, holding: Collection[str]) -> None:
    """A line if cases have no foreground; a warning if such cases alone choose the weights."""
    empty = [len({*part} - {*holding}) for part in (split.train, split.validation)]
    if empty[1] == len(split.validation):
        logger.warning("no validation case has foreground, so the best weights may be those that find nothing")
    elif any(empty):
        text = "%d of %d training and %d of %d validation cases have no foreground: the split is stratified by it"
        logger.info(text, empty[0], len(split.train), empty[1], len(split.validation))


def find_learning_rate(request: TrainRequest) -> tuple[float, float, Path]:
    """Try learning rates on the weights that training would begin with, and keep nothing but a table and a picture.

    Returns: the rate to begin with, that of the recipe, and the run folder with learning_rates.csv and its picture.
    Raises: as `train`; TrainingError if no rate makes the loss fall.
    """
    dataset = read_dataset(request.data)
    folder = request.out or default_folder(dataset)
    recipe, weights = _checked_recipe(request, len(dataset.cases))
    request = replace(request, weights=weights)
    with _writing(folder), locked(folder):
        run, *_ = _start(request, recipe, dataset, folder, None, DistributedContext())
        test = run.try_rates()
        test.write(folder)
    return test.suggestion, recipe.training.learning_rate, folder


def test_run(folder: Path, data: Path) -> Evaluation:
    """Predict and score the test cases of a run; `predictions/` and `evaluation/` go into its folder.

    Raises: UserError for a run that is not finished, other data than it was trained on, or a case that fails.
    """
    record, split, dataset = read_record(folder), Split.read(folder / SPLIT_FILE), read_dataset(data)
    split.require_known(dataset.names)
    with locked(folder):
        return _test(folder, record, split, dataset)


def _test(folder: Path, record: RunRecord, split: Split, dataset: MedicalDataset) -> Evaluation:
    cases = [case for case in dataset.cases if case.name in split.test and case.label]
    inputs = [Input(case.name, case.images, reference=case.label if record.needs_reference else None) for case in cases]
    job = Job(partial(load_model, folder), folder / "predictions")
    with progress_bar("Predicting the test set") as progress:
        outcomes = predict_batch(job, inputs, progress=progress)
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise DataError("\n".join(failed))
    pairs = [(o.name, o.output, c.label) for o, c in zip(outcomes, cases, strict=True) if o.output and c.label]
    evaluation = evaluate_cases(pairs, record.plan.scheme, Scoring((record.plan.nsd_tolerance_mm, 1.0)))
    evaluation.write(folder / "evaluation")
    return evaluation


@contextmanager
def writing_run(folder: Path) -> Iterator[None]:
    """All that training needs around it: the folder, its lock and its log; SIGTERM raises Terminated."""
    with _writing(folder), locked(folder), log_to(folder / "log.txt"), raising_terminated():
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make a folder, and raise DataError if it or a file in it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        raise DataError(
            f"{folder}: cannot be written: {error.strerror}; what is there stays, and --resume goes on from it"
        ) from None


def default_folder(dataset: MedicalDataset) -> Path:
    """runs/NAME of a data set, without characters that have a meaning in paths."""
    return Path("runs") / (re.sub(r"[^\w.-]+", "_", dataset.name).strip("._") or "run")


def new_or_resumed(folder: Path, resume: bool) -> bool:
    """Whether there is something to train, and not a finished run to resume.

    Raises: DataError for a new run where there is one, or none to resume.
    """
    require_path(folder)
    if resume and not (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder}: no run to resume here")
    if not resume and (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder}: there is a run here already; go on with it by --resume, or choose another --out")
    if finished := resume and (folder / MODEL_FILE).is_file():
        logger.info("%s: this run is finished", folder)
    return not finished
