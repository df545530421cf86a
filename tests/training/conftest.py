"""A training run small enough for a test: nano at 64 pixels on the balls."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from sam2_3dmed.config import LossConfig, RunConfig, paper_scratch, with_settings

if TYPE_CHECKING:
    from sam2_3dmed.training.slab_training import SlabTraining

QUICK = [
    "model.size=nano",
    "model.image_size=64",
    "slab_slices=3",
    "training.epochs=4",
    "training.single_slice_fraction=0.25",
    "training.samples_per_epoch=4",
    "training.batch_size=2",
    "training.validate_every=2",
    "training.workers=0",
    "training.precision='32'",
    "inference.direction=forward",
    "inference.overlap=0",
]


@pytest.fixture(scope="session")
def quick() -> Callable[..., RunConfig]:
    """The recipe `paper_scratch` cut down; more settings as arguments."""
    return lambda *settings: with_settings(paper_scratch(), [*QUICK, *settings])


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def prepared(blobs: Path, cache_folder: Path) -> tuple:
    """The plan and the prepared cases of the balls."""
    from sam2_3dmed.data.cache import build_cache
    from sam2_3dmed.data.dataset import read_dataset
    from sam2_3dmed.data.fingerprint import fingerprint
    from sam2_3dmed.data.plan import propose_plan

    catalog = read_dataset(blobs)
    plan = propose_plan(fingerprint(catalog))
    return plan, build_cache(catalog, plan, cache_folder)


@pytest.fixture(scope="session")
def fit_on_balls(prepared: tuple) -> Callable[..., tuple]:
    """Trains on six of the balls as a recipe says, and validates on two; gives the network and the result."""
    from sam2_3dmed.run.build_model import make_model
    from sam2_3dmed.run.sam2_model import make_predictor
    from sam2_3dmed.run.sam2_run import Sam2Run
    from sam2_3dmed.training.distributed import DistributedContext, seed_all

    def run(config: RunConfig, folder: Path, resume: bool = False) -> tuple:
        plan, cache = prepared
        seed_all(config.training.seed)
        network, record = make_model(config, plan, "none")
        cases = cache[:6], cache[6:8]
        predictor = make_predictor(network, record)
        return network, Sam2Run(record, predictor, *cases, folder, DistributedContext()).fit(resume=resume)

    return run


SHORT = [
    "slab_slices=2",
    "training.epochs=2",
    "training.single_slice_fraction=0.5",
    "training.samples_per_epoch=2",
    "training.batch_size=1",
]


@pytest.fixture(scope="session")
def short(quick: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """An epoch of single slices and one of slabs, two steps each; more settings as arguments."""
    return lambda *settings: quick(*SHORT, *settings)


_SERVER = """
import json, os, sys
import transformers.models.sam2.modeling_sam2
import sam2_3dmed.run.train
from sam2_3dmed.cli.main import main
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        output = os.open(order["output"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        exec(order["before"])
        sys.argv = ["sam2-3dmed", *order["arguments"]]
        main()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    """How a command ended: its exit status, negative for a signal, and what it wrote to its standard streams."""

    status: int
    output: str


@pytest.fixture(scope="session")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Ended]]:
    """Runs the command line in a process of its own, which is spared the imports; `before`: code to run there first."""
    output = tmp_path_factory.mktemp("command_line") / "output.txt"
    server = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(*arguments: object, before: str = "") -> Ended:
        order = {"arguments": [str(part) for part in arguments], "before": before, "output": str(output)}
        print(json.dumps(order), file=server.stdin, flush=True)
        return Ended(int(server.stdout.readline()), output.read_text())

    with server:
        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def make_module() -> Callable[..., "SlabTraining"]:
    """A module of a small random network, five steps an epoch; settings of its training as arguments."""
    import torch
    from torch.utils.data import DataLoader

    from sam2_3dmed.config import InferenceConfig, NetworkConfig
    from sam2_3dmed.inference.predictor import Predictor
    from sam2_3dmed.model.build import build_network
    from sam2_3dmed.training.loader import Division
    from sam2_3dmed.training.slab_training import SlabTraining
    from sam2_3dmed.volume.preprocess import Normalisation, Preprocessing

    def make(**changes: object) -> SlabTraining:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = build_network(NetworkConfig(size="nano", image_size=64), 1)
        preprocessing = Preprocessing("axial", (Normalisation("fixed", 0, 1),))
        predictor = Predictor(
            network,
            preprocessing=preprocessing,
            labels={1: "organ"},
            slab_slices=3,
            config=InferenceConfig(precision="32"),
        )
        training = paper_scratch().training.model_copy(update=changes)
        return SlabTraining(
            predictor,
            DataLoader([], batch_sampler=Division(samples_per_epoch=5, batch_size=1)),
            validation=[],
            config=RunConfig(loss=LossConfig(), training=training),
        )

    return make
