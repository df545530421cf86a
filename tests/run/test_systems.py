"""The registry of systems, and a stranger's system that is trained and predicts through the public doors."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sam2_3dmed.config import paper, with_settings
from sam2_3dmed.errors import ConfigError
from sam2_3dmed.run import systems
from sam2_3dmed.run.run_folder import load_model, read_record
from sam2_3dmed.run.systems import find_system, require_recipe, system_names
from sam2_3dmed.volume.label import read_label
from sam2_3dmed.volume.volume import Volume, same_grid

STRANGER = """
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from sam2_3dmed.config import SplitConfig, with_settings
from sam2_3dmed.inference.interface import WithoutAuxiliary
from sam2_3dmed.run.run_config import RunRecord
from sam2_3dmed.run.run_folder import MODEL_FILE, read_weights, save_model
from sam2_3dmed.run.systems import System, TrainingRun
from sam2_3dmed.training.loop import FitResult


class Inference(BaseModel):
    factor: float = 1.0


class Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    split: SplitConfig = SplitConfig()
    inference: Inference = Inference()
    steps: int = 10


class Record(RunRecord):
    system: Literal["threshold"] = "threshold"
    recipe: Recipe

    @property
    def about(self):
        return "a threshold"


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bound = torch.nn.Parameter(torch.tensor(0.0))


class Run(TrainingRun):
    def __init__(self, preparation):
        p = preparation
        self.record = Record(plan=p.plan, recipe=p.recipe, weights="none", versions={"stranger": "3"})
        self.folder, self.network = p.folder, Network()
        self.cases = p.cases()[0]

    def fit(self, *, resume):
        inside = [np.asarray(c.image, float)[:, 0][np.asarray(c.label) == 1].mean() for c in self.cases]
        self.network.bound.data.fill_(0.9 * float(np.mean(inside)))
        return FitResult(best_dice=1.0, epochs=1, steps=self.record.recipe.steps)

    def save(self):
        save_model(self.network, self.record, self.folder)


class Threshold(WithoutAuxiliary):
    def __init__(self, plan, bound):
        self.labels, self.num_channels = plan.labels, len(plan.channels)
        self.preprocessing, self.bound = plan.preprocessing, bound

    def __call__(self, volume, *, reference=None, probabilities=None, on_slice=None, cancel=None):
        found = self.preprocessing.slices(volume)[:, 0] > self.bound
        mask = volume.with_array(np.zeros(volume.array.shape, np.uint8))
        from sam2_3dmed.volume.slices import volume_to_slices

        volume_to_slices(mask, self.preprocessing.slicing_axis)[:] = found * next(iter(self.labels))
        return mask


class ThresholdSystem(System):
    name = "threshold"
    title = "A threshold"
    source = "nowhere"
    record_type = Record

    def recipe(self, name="auto", settings=(), *, from_scratch=False):
        return with_settings(Recipe(), settings)

    def start(self, preparation):
        return Run(preparation)

    def load(self, folder, record, *, device, backend, **settings):
        return Threshold(record.plan, read_weights(folder / MODEL_FILE)["bound"].item())


SYSTEM = ThresholdSystem()
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package of its own on the path, with metadata as pip leaves them."""
    site = tmp_path / "site"
    (site / "stranger-3.dist-info").mkdir(parents=True)
    (site / "stranger_system.py").write_text(STRANGER)
    (site / "stranger-3.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 3\n")
    entries = """
        [sam2_3dmed.systems]
        threshold = stranger_system:SYSTEM
        broken = stranger_system_that_is_gone:SYSTEM
    """
    (site / "stranger-3.dist-info" / "entry_points.txt").write_text(textwrap.dedent(entries))
    monkeypatch.syspath_prepend(site)
    systems._installed.cache_clear()
    yield
    systems._installed.cache_clear()
    sys.modules.pop("stranger_system", None)


def test_ours_comes_first() -> None:
    assert system_names()[0] == "sam2_3dmed"
    assert {"nnunet", "unet", "nnformer", "universal"} < set(system_names())
    assert find_system("sam2_3dmed").title == "SAM2-3dMed"


def test_a_name_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"^no system 'nnformr'; did you mean 'nnformer'\?$"):
        find_system("nnformr")


def test_recipes_belong_to_their_system() -> None:
    require_recipe(find_system("sam2_3dmed"), paper())
    with pytest.raises(ConfigError, match=r"^this recipe is for sam2_3dmed, not for nnformer$"):
        require_recipe(find_system("nnformer"), paper())
    with pytest.raises(ConfigError, match=r"^this recipe is for unet, not for sam2_3dmed$"):
        require_recipe(find_system("sam2_3dmed"), find_system("unet").recipe())


def test_options_that_do_not_go_together_are_found_without_data() -> None:
    ours, unet = find_system("sam2_3dmed"), find_system("unet")
    ours.check(paper(), weights="auto", gpu_memory=None)
    unet.check(unet.recipe(), weights="none", gpu_memory=None)
    with pytest.raises(ConfigError, match="adapts a pre-trained encoder"):
        ours.check(with_settings(paper(), ["training.encoder=lora"]), weights="none", gpu_memory=None)
    with pytest.raises(ConfigError, match="--weights none"):
        ours.recipe("paper+without_pretraining")


def test_a_strangers_system_trains_and_predicts(stranger: None, blobs: Path, tmp_path: Path) -> None:
    from sam2_3dmed.cli.main import app

    run, masks = tmp_path / "run", tmp_path / "masks"
    arguments = ["train", blobs, "--out", run, "--system", "threshold", "--set", "steps=5", "--test"]
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "bright" in result.output
    record = read_record(run)
    assert (record.system, record.recipe.steps, record.about) == ("threshold", 5, "a threshold")
    arguments = ["predict", blobs / "imagesTr" / "blob_00.nii.gz", "-o", masks, "-m", run]
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    image, truth = (Volume.read(blobs / part / "blob_00.nii.gz") for part in ("imagesTr", "labelsTr"))
    mask = read_label(masks / "blob_00.nii.gz")
    assert same_grid(mask, image)
    assert (mask.array == 1)[truth.array == 1].mean() > 0.8
    assert np.array_equal(load_model(run)(image).array, mask.array)
    with pytest.raises(ConfigError, match="--backend onnxruntime is for SAM2-3dMed, and this is a threshold"):
        load_model(run, backend="onnxruntime")


def test_a_system_that_cannot_be_imported(stranger: None) -> None:
    with pytest.raises(ConfigError, match=r"^system broken cannot be loaded: No module named 'stranger_"):
        find_system("broken")
