"""Whether a few kept views teach as much as fresh augmentation: validation Dice after the same number of steps.

    python benchmarks/feature_cache_accuracy.py runs/Task04_Hippocampus Task04_Hippocampus --cases 24 --steps 300

Each side is a call of `train` that starts from a run with the encoder of a trained one, frozen, and everything else
new. The data set is the first training cases of that run and its validation cases, few, so that each slice of a view is
used often; `train` splits them. Validation is forward only. 0 views is fresh augmentation, with the encoder at work;
the others keep features in bf16. Seconds are those of a processor, for training and validation together. Without
arguments it says what it needs, and measures nothing.
"""

import argparse
import csv
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

EPOCHS = 10


def link_cases(run: Path, data: Path, num_cases: int, folder: Path) -> None:
    """Make a data set with the run's first training cases and its validation cases."""
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.data.splits import Split

    split = Split.read(run / "split.json")
    names = {*sorted(split.train)[:num_cases], *split.validation}
    for case in read_dataset(data).cases:
        if case.name in names:
            for part, file in (("images", case.images[0]), ("labels", case.label)):
                (folder / part).mkdir(parents=True, exist_ok=True)
                (folder / part / file.name).symlink_to(file.resolve())


def start_anew(run: Path, settings: list[str], seed: int, folder: Path) -> Any:
    """Write a run with the trained encoder and everything else new. Returns: the recipe."""
    from sam2_3dmed.config import paper_scratch, with_settings
    from sam2_3dmed.run.build_model import make_model
    from sam2_3dmed.run.run_folder import MODEL_FILE, read_record, read_weights, save_model
    from sam2_3dmed.training.distributed import seed_all

    record = read_record(run)
    model = [f"model.size={record.recipe.model.size}", f"model.image_size={record.recipe.model.image_size}"]
    recipe = with_settings(paper_scratch(), [*model, *settings])
    seed_all(seed)
    plain = with_settings(recipe, ["feature_cache.views=0"])
    network, made = make_model(plain, record.plan, "none")
    weights = read_weights(run / MODEL_FILE)
    own = {name: tensor for name, tensor in weights.items() if name.startswith("encoder.")}
    network.load_state_dict(own, strict=False)
    save_model(network, made, folder)
    return recipe


def train_side(data: Path, views: int, seed: int, folder: Path, arguments: argparse.Namespace) -> tuple[float, str]:
    """Validation Dice at the end, and what the loader and the cache logged last."""
    from sam2_3dmed import TrainRequest, train

    settings = [
        "training.encoder=frozen",
        f"training.epochs={EPOCHS}",
        f"training.samples_per_epoch={arguments.steps * arguments.batch_size // EPOCHS}",
        f"training.batch_size={arguments.batch_size}",
        f"training.validate_every={EPOCHS}",
        f"training.seed={seed}",
        "training.workers=1",
        "inference.direction=forward",
        f"feature_cache.views={views}",
        *(arguments.set or []),
    ]
    start, out = folder / f"start-{views}-{seed}", folder / f"run-{views}-{seed}"
    recipe = start_anew(arguments.run, settings, seed, start)
    said = _LastWords()
    cache = arguments.cache or folder / "cache"
    train(TrainRequest(data, out, recipe=recipe, weights=str(start), plan=arguments.plan, cache=cache))
    with (out / "curves.csv").open(newline="") as file:
        found = [float(row["validation/dice"]) for row in csv.DictReader(file) if row["validation/dice"]]
    return max(found), said.stop()


class _LastWords(logging.Handler):
    """The last messages of the feature cache and of the measurement of the loader's share."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.words: dict[str, str] = {}
        self.source = logging.getLogger("sam2_3dmed.training")
        self.source.setLevel(logging.INFO)
        self.source.addHandler(self)

    def emit(self, record: Any) -> None:
        self.words[record.name] = record.getMessage()

    def stop(self) -> str:
        self.source.removeHandler(self)
        names = ("monitoring", "feature_cache")
        return "; ".join(filter(None, (self.words.get(f"sam2_3dmed.training.{name}") for name in names)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--cases", type=int, default=24)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--views", type=int, nargs="+", default=[0, 1, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--plan", type=Path, help="plan of the data set; none: each run proposes it")
    parser.add_argument("--cache", type=Path, help="folder of prepared cases that stays; none: a temporary one")
    parser.add_argument("--set", action="append", help="section.key=value, as for `train`")
    arguments = parser.parse_args()
    if arguments.run is None:
        print("nothing measured: it needs RUN, the folder of a trained run, and DATA, that of its data set; see --help")
        return
    if arguments.data is None:
        parser.error("DATA is missing, the folder of the run's data set")

    import torch

    torch.set_num_threads(1)
    print(f"{arguments.cases} cases, {arguments.steps} steps of {arguments.batch_size} slabs")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        link_cases(arguments.run, arguments.data, arguments.cases, folder / "data")
        for seed in arguments.seeds:
            for views in arguments.views:
                started = time.process_time()
                dice, words = train_side(folder / "data", views, seed, folder, arguments)
                seconds = time.process_time() - started
                print(
                    f"seed {seed}, {views or 'fresh'} views: validation Dice {dice:.4f}; {seconds:.0f} seconds; "
                    f"load {os.getloadavg()[0]:.1f}; {words}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
