"""A real network with random weights, small and quick; jobs over it, and who kills their workers."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from sam2_3dmed.config import NetworkConfig
from sam2_3dmed.inference.batch import Job
from sam2_3dmed.inference.manifest import Manifest
from sam2_3dmed.model.build import build_network
from sam2_3dmed.run.run_folder import load_model


@pytest.fixture(scope="session")
def make_network():
    """Networks of size nano for 64 x 64 pixels, the same weights for the same number of classes."""
    made = {}

    def make(num_classes: int = 2):
        if num_classes not in made:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made[num_classes] = build_network(NetworkConfig(size="nano", image_size=64), num_classes).eval()
        return made[num_classes]

    return make


@pytest.fixture(scope="session")
def network(make_network):
    """Two classes."""
    return make_network()


@pytest.fixture
def studies(tmp_path, write_series, stored_voxels):
    """Two folders of a DICOM series each, of different size."""
    write_series(tmp_path / "st.1" / "deep", stored_voxels())
    write_series(tmp_path / "st.2", stored_voxels()[:, :, ::2], RescaleIntercept=0)
    return [tmp_path / "st.1", tmp_path / "st.2"]


@pytest.fixture(scope="session")
def make_job():
    """A job of a run into a folder."""

    def make(run: Path, folder: Path) -> Job:
        manifest = Manifest(folder, str(run), "0")
        return Job(partial(load_model, run, direction="forward"), folder, manifest=manifest)

    return make


@pytest.fixture(scope="session")
def worker_pids():
    """See `_worker_pids`."""
    return _worker_pids


@pytest.fixture(scope="session")
def first_worker_killed():
    """See `_first_worker_killed`."""
    return _first_worker_killed


def _worker_pids(job: Job) -> list[int]:
    """Of each finished case, the process that did it."""
    return [int(line["worker"].rpartition(":")[2]) for line in job.manifest.lines()]


@contextmanager
def _first_worker_killed(job: Job) -> Iterator[list[tuple[int, int]]]:
    """As the body's first case is noted, its worker is killed from outside.

    Gives a list of its process and how many cases were noted then, filled by the end of the body.
    """
    killed: list[tuple[int, int]] = []
    ended = threading.Event()

    def kill_the_first() -> None:
        while not killed and not ended.is_set():
            for pid in _worker_pids(job)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append((pid, len(_worker_pids(job))))
            time.sleep(0.001)

    killer = threading.Thread(target=kill_the_first)
    killer.start()
    try:
        yield killed
    finally:
        ended.set()
        killer.join()
    assert killed
