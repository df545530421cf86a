"""Runs as jobs: on Ray, and as SLURM tasks by submitit's local executor; jobs that die are told and gone on with."""

import os
import sys
from dataclasses import replace
from functools import partial

import pytest

from sam2_3dmed.errors import ConfigError
from sam2_3dmed.experiments.clusters import Part, on_ray, on_slurm, one_by_one
from sam2_3dmed.experiments.planning import plan_experiment
from sam2_3dmed.experiments.reproduce import reproduce
from sam2_3dmed.experiments.run_executor import Place

LOCAL = {"cluster": "local", "timeout_min": 10}


@pytest.fixture
def broken(request_for, tmp_path):
    """Runs that fail at once, for lack of weights, each in its own words."""
    experiment = plan_experiment(request_for(4))
    return [replace(run, weights=str(tmp_path / f"{run.method}.pt")) for run in experiment.runs]


def test_one_by_one(broken, tmp_path):
    ended = []
    one_by_one(broken, tmp_path, ended.append)
    assert ended == broken
    assert [f"{run.method}.pt" in Place.of(run, tmp_path).failure for run in broken] == [True, True]


@pytest.mark.long
@pytest.mark.parametrize(
    ("runner", "package"),
    [(partial(on_ray, workers=1), "ray"), (partial(on_slurm, options=LOCAL), "submitit")],
    ids=["ray", "slurm"],
)
def test_a_table_is_carried_out_by_jobs(request_for, tmp_path, monkeypatch, runner, package):
    pytest.importorskip(package, reason=f"needs {package}")
    monkeypatch.chdir(tmp_path)
    request = request_for(4, out=(tmp_path / "out").relative_to(tmp_path))
    outcome = reproduce(request, runner)
    assert outcome.failures == ()
    assert "not run yet" not in outcome.text
    assert [Place.of(run, tmp_path / "out").state for run in plan_experiment(request).runs] == ["done", "done"]
    assert reproduce(request, None).text == outcome.text, "nothing is left, so no runner is called"


class Dies(Part):
    """A job that the system kills."""

    def __call__(self):
        os._exit(9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("runner", "package", "words"),
    [
        (partial(on_ray, workers=1), "ray", "WorkerCrashedError: "),
        (partial(on_slurm, options=LOCAL), "submitit", "the same command does what is missing"),
    ],
    ids=["ray", "slurm"],
)
def test_jobs_that_die_are_failures(broken, tmp_path, monkeypatch, runner, package, words):
    pytest.importorskip(package, reason=f"needs {package}")
    monkeypatch.setattr("sam2_3dmed.experiments.clusters.Part", Dies)
    pickling = pytest.importorskip("ray.cloudpickle" if package == "ray" else "cloudpickle")
    pickling.register_pickle_by_value(sys.modules[__name__])  # other processes cannot import it
    ended = []
    try:
        runner(broken[:1], tmp_path, ended.append)
    finally:
        pickling.unregister_pickle_by_value(sys.modules[__name__])
    assert [run.key for run in ended] == [broken[0].key]
    assert words in Place.of(broken[0], tmp_path).failure


def test_a_task_that_is_queued_again_is_the_same(broken, tmp_path):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    part = Part(broken[0], tmp_path)
    assert part.checkpoint().function == part


def test_without_the_extra(monkeypatch, broken, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'sam2-3dmed\[ray\]'"):
        on_ray(broken, tmp_path, list, workers=1)
