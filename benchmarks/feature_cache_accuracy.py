"""Whether a few kept views teach as much as fresh augmentation: validation Dice after the same number of steps.

    python benchmarks/feature_cache_accuracy.py runs/Task04_Hippocampus Task04_Hippocampus --cases 24 --steps 300

The encoder is that of a trained run, frozen; everything else starts anew. All sides train on the first cases of the
run's training part, few, so that each slice of a view is used often, and are scored on its validation cases, forward.
0 views is fresh augmentation, and the encoder at work; the others keep features in bf16. Seconds are those of a
processor, for training and validation together. Without arguments it says what it needs, and measures nothing.
"""

import argparse
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any


def train(cache: Path, views: int, seed: int, arguments: argparse.Namespace) -> tuple[float, str]:
    """Validation Dice at the end, and what is said of the loader and the cache."""
    from sam2_3dmed.config import scratch, with_settings
    from sam2_3dmed.data.cache import build_cache
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.data.splits import Split
    from sam2_3dmed.run.build_model import make_model
    from sam2_3dmed.run.run_folder import MODEL_FILE, read_record, read_weights
    from sam2_3dmed.run.sam2_run import make_predictor
    from sam2_3dmed.training.fit import fit
    from sam2_3dmed.training.trainer import seed_everything

    run: Path = arguments.run
    record, split = read_record(run), Split.read(run / "split.json")
    epochs = 10
    settings = [
        f"model.size={record.recipe.model.size}",
        f"model.image_size={record.recipe.model.image_size}",
        "training.encoder=frozen",
        f"training.epochs={epochs}",
        f"training.samples_per_epoch={arguments.steps * arguments.batch_size // epochs}",
        f"training.batch_size={arguments.batch_size}",
        f"training.validate_every={epochs}",
        f"training.seed={seed}",
        "training.workers=1",
        "inference.direction=forward",
        f"feature_cache.views={views}",
        *(arguments.set or []),
    ]
    config = with_settings(scratch(), settings)
    training, validation = sorted(split.train)[: arguments.cases], split.validation
    cases = build_cache(read_dataset(arguments.data).subset({*training, *validation}), record.plan, cache)
    seed_everything(seed)
    network, made = make_model(config, record.plan, "none")
    weights = read_weights(run / MODEL_FILE)
    prefix = "encoder."
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    network.encoder.load_state_dict(own)
    said = _LastWords()
    with tempfile.TemporaryDirectory() as folder:
        result = fit(
            network,
            make_predictor(network, made),
            training=cases.subset(training),
            validation=cases.subset(validation),
            config=config,
            folder=Path(folder),
        )
    return result.best_dice, said.stop()


class _LastWords(logging.Handler):
    """What the feature cache, and who measures the wait for the loader, log last."""

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
        names = ("loader_share", "feature_cache")
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
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            for views in arguments.views:
                started = time.process_time()
                dice, words = train(arguments.cache or Path(folder), views, seed, arguments)
                seconds = time.process_time() - started
                print(
                    f"seed {seed}, {views or 'fresh'} views: validation Dice {dice:.4f}; {seconds:.0f} seconds; "
                    f"load {os.getloadavg()[0]:.1f}; {words}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
