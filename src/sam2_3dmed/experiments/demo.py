"""The whole workflow on made-up data: a phantom data set, the nano model from scratch on the CPU, masks, scores,
pictures."""

import logging
import shutil
import time
from pathlib import Path

from sam2_3dmed.config import RunConfig, scratch, with_settings
from sam2_3dmed.data.dataset import Case, read_case, read_dataset
from sam2_3dmed.data.phantom import write_phantom_dataset
from sam2_3dmed.data.splits import Split
from sam2_3dmed.errors import DataError
from sam2_3dmed.evaluation.cases import summary_table
from sam2_3dmed.evaluation.metrics import MEAN_NAME
from sam2_3dmed.experiments.threshold_baseline import Pair, best_threshold_dice
from sam2_3dmed.processes.map_cases import progress_bar
from sam2_3dmed.report.build import write_report
from sam2_3dmed.report.contents import RunContents, chosen_cases, read_run
from sam2_3dmed.report.planes import draw_cases, read_volumes
from sam2_3dmed.run.run_config import CONFIG_FILE
from sam2_3dmed.run.run_folder import SPLIT_FILE
from sam2_3dmed.run.train import TrainRequest, test_run, train

_SEED = 0

logger = logging.getLogger(__name__)


def demo_recipe(minutes: float | None = None) -> RunConfig:
    """`scratch` with the nano model and a short training."""
    settings = ["model.size=nano", "model.image_size=128"]  # 96 pixels are too few for thin organs
    # The rate is higher than that of `scratch`, which has ten times as many steps.
    training = {"epochs": 12, "samples_per_epoch": 50, "validate_every": 12, "learning_rate": 2.5e-3}
    settings += [f"training.{key}={value}" for key, value in {**training, "minutes": minutes}.items()]
    return with_settings(scratch(), settings)


def run_demo(out: Path, *, num_cases: int = 40, minutes: float | None = None) -> str:
    """Run the demo below `out`: data/, run/ (with report.html), pictures/.

    It replaces the run of an earlier demo in the same folder, and raises DataError if the folder holds something else.

    Returns: a line for machines with the scores on the held-out phantoms.
    """
    started = time.monotonic()
    logger.info("making %d phantom CT volumes (pancreas and tumour) in %s", num_cases, out / "data")
    with progress_bar("Making phantoms") as progress:
        data = write_phantom_dataset(out / "data", num_cases=num_cases, seed=_SEED, on_case=progress)
    folder = out / "run"
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if CONFIG_FILE in found or found == {"log.txt"}:  # only a log: stopped before training
        shutil.rmtree(folder)
    elif found:
        raise DataError(f"{folder}: holds something that is not a run; choose another --out")
    train(TrainRequest(data, folder, recipe=demo_recipe(minutes), weights="none"))
    evaluation = test_run(folder, data)
    logger.info("held-out volumes:\n%s", summary_table(evaluation.summary()))
    split, cases = Split.read(folder / SPLIT_FILE), {case.name: case for case in read_dataset(data).cases}
    train_pairs, test_pairs = ([_read_pair(cases[name]) for name in part] for part in (split.train, split.test))
    threshold = best_threshold_dice(train_pairs, test_pairs, classes=evaluation.labels).mean
    logger.info("the best intensity threshold reaches a mean Dice of %.4f on them", threshold)
    picture = out / "pictures" / "held_out.png"
    _draw(read_run(folder, data), picture)
    logger.info("masks: %s; scores: %s; picture: %s", folder / "predictions", folder / "evaluation", picture)
    logger.info("report, opens in any browser: %s", write_report(folder, data))
    dice = {row["class"]: row["dice"]["mean"] for row in evaluation.summary()["results"]}
    lowest = min(dice[name] for name in evaluation.labels.values())
    return (
        f"demo: mean_dice={dice[MEAN_NAME]:.4f} min_class_dice={lowest:.4f} "
        f"threshold_dice={threshold:.4f} seconds={time.monotonic() - started:.0f}"
    )


def _read_pair(case: Case) -> Pair:
    image, label = read_case(case)
    assert label is not None
    return image, label


def _draw(contents: RunContents, path: Path) -> None:
    """Draw the best, the median and the worst case."""
    plan, pictures = contents.record.plan, []
    for rank, case in chosen_cases(contents.cases, "dice", "higher").items():
        title = f"{rank}: {case.name}, Dice {case.score('dice'):.2f}"
        pictures.append((title, *read_volumes(case, plan.labels)))
    draw_cases(pictures, plan.labels, plan.preprocessing, path)
