"""From a folder of labelled volumes to a run folder: what the `train` command does, step by step."""

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sam2_3dmed.baselines.systems import OURS
from sam2_3dmed.data.dataset import Case, MedicalDataset, read_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.dicom.codes import read_codes
from sam2_3dmed.errors import ConfigError, DataError, TrainingError
from sam2_3dmed.evaluation.cases import Evaluation, evaluate_cases
from sam2_3dmed.evaluation.metrics import Scoring
from sam2_3dmed.inference.batch import Results, predict_cohort
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.processes.map_cases import progress_bar
from sam2_3dmed.processes.signals import Terminated, raising_terminated
from sam2_3dmed.run.run_config import CONFIG_FILE, RunRecord
from sam2_3dmed.run.run_folder import MODEL_FILE, load_model, log_to, remember_codes, remember_data
from sam2_3dmed.run.starts import SPLIT_FILE as SPLIT_FILE
from sam2_3dmed.run.starts import Sam2Start, make_start
from sam2_3dmed.run.train_request import TrainRequest as TrainRequest
from sam2_3dmed.training.distributed import DistributedContext
from sam2_3dmed.training.fit import try_rates

_CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
}

logger = logging.getLogger(__name__)


def train_run(request: TrainRequest) -> Path | None:
    """Train, and leave a run folder; each process that takes part in a run calls this.

    Returns: the run folder; None in a process that only helps the first one.
    Raises:
        UserError: data, plan or weights that cannot be used; a run folder that is there already, or, to resume, is not.
        Terminated: SIGTERM came; `resume` goes on from there.
    """
    distributed = DistributedContext.find(request.devices, request.nodes)
    if not distributed.first:
        _help(request, distributed)
        return None
    try:
        return _lead(request, distributed)
    finally:
        distributed.start_barrier(False)  # if the others still wait, there is nothing to do for them


def _help(request: TrainRequest, distributed: DistributedContext) -> None:
    """Train with the process that prepares the run and writes what it leaves."""
    logging.getLogger("sam2_3dmed").setLevel(logging.ERROR)  # the first one speaks
    if not distributed.start_barrier():
        return
    catalog = read_dataset(request.data)
    folder = request.out or default_folder(catalog)
    with suppress(Terminated, TrainingError), raising_terminated():  # the first one meets the same, and says so
        start = make_start(request, catalog, folder, RunRecord.read(folder), distributed)
        start.fit(folder, resume=request.resume, distributed=distributed)


def _lead(request: TrainRequest, distributed: DistributedContext) -> Path:
    catalog = read_dataset(request.data)
    folder = request.out or default_folder(catalog)
    _check_folder(folder, request.resume)
    if request.resume and (folder / MODEL_FILE).is_file():
        logger.info("%s: this run is finished", folder)
        return folder
    if not request.resume:
        request.check()
    with _writing(folder), log_to(folder / "log.txt"), raising_terminated():
        _train(request, catalog, folder, distributed)
    return folder


def find_learning_rate(request: TrainRequest) -> tuple[float, Path]:
    """Try learning rates on the weights that training would begin with, and keep nothing but a table and a picture.

    Returns: the rate to begin with, and the folder of learning_rates.csv and learning_rates.png: the run folder.
    Raises:
        UserError: as for training; or no rate makes the loss fall.
    """
    catalog = read_dataset(request.data)
    folder = request.out or default_folder(catalog)
    request.check()
    with _writing(folder):
        start = make_start(request, catalog, folder, None, DistributedContext())
        if not isinstance(start, Sam2Start):
            raise ConfigError(f"learning rates are tried for {OURS} only")
        config = start.record.recipe
        test = try_rates(start.network, start.predictor, training=start.training, config=config, folder=folder)
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


def default_folder(catalog: MedicalDataset) -> Path:
    """runs/NAME, NAME being that of the data set without what has a meaning in paths."""
    return Path("runs") / (re.sub(r"[^\w.-]+", "_", catalog.name).strip("._") or "run")


def _train(request: TrainRequest, catalog: MedicalDataset, folder: Path, distributed: DistributedContext) -> None:
    described = request.data / "dataset.json"
    codes = read_codes(described) if described.is_file() else {}  # before the cases are read, for minutes
    old = RunRecord.read(folder) if request.resume else None
    start = make_start(request, catalog, folder, old, distributed)
    if request.gpu_memory is not None and isinstance(start, Sam2Start):
        start = start.within_memory(request.gpu_memory, distributed)
    if old is None:
        start.split.write(folder / SPLIT_FILE)
        start.record.write(folder)  # last: it is what makes the folder a run
    remember_data(folder, request.data)
    remember_codes(folder, codes)
    distributed.start_barrier()
    result = start.fit(folder, resume=request.resume, distributed=distributed)
    start.save(folder)
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
    record, split, catalog = RunRecord.read(folder), Split.read(folder / SPLIT_FILE), read_dataset(data)
    split.require_known(catalog.names)
    cases = [case for case in catalog.cases if case.name in split.test and case.label]
    predictor = load_model(folder)
    with progress_bar("Predicting the test set") as progress:
        outcomes = predict_cohort(
            predictor, [_input(case, record) for case in cases], Results(folder / "predictions"), progress
        )
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise DataError("\n".join(failed))
    pairs = [(o.name, o.output, c.label) for o, c in zip(outcomes, cases, strict=True) if o.output and c.label]
    evaluation = evaluate_cases(pairs, record.plan.labels, Scoring((record.plan.nsd_tolerance_mm, 1.0)))
    evaluation.write(folder / "evaluation")
    return evaluation


def _input(case: Case, record: RunRecord) -> Input:
    return Input(case.name, case.images, reference=case.label if record.takes_boxes else None)


def _check_folder(folder: Path, resume: bool) -> None:
    if resume and not (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder}: no run to resume here")
    if not resume and (folder / CONFIG_FILE).is_file():
        raise DataError(f"{folder}: there is a run here already; go on with it by --resume, or choose another --out")
