"""The table in CONTRIBUTING of what an addition touches. Each addition is made in a copy of the package, and works.

A system in a package of its own is tested in tests/run/test_systems.py.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from sam2_3dmed.volume.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
LOSS = '''"""Mean absolute error of the probabilities."""

from sam2_3dmed.training.losses.registry import segmentation_term


@segmentation_term("absolute")
def absolute_loss(logits, masks):
    return (logits.sigmoid() - masks).abs().mean()
'''
FORMAT = '''"""Masks as arrays of NumPy."""

import numpy as np

from sam2_3dmed.processes.atomic import replacing


def write_npy(mask, path):
    with replacing(path) as file:
        np.save(file, mask.array)
'''
ENCODER = '''"""Three convolutions, one for each level."""

import torch
from torch import nn

from sam2_3dmed.encoders.registry import Encoder


class PlainEncoder(Encoder):
    lora_targets = "levels"

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.levels = nn.ModuleList(nn.Conv2d(3, channels, stride, stride) for stride in (4, 8, 16))

    @classmethod
    def build(cls, size, image_size, channels):
        return cls(channels)

    def forward(self, pixels):
        return [level(pixels).contiguous(memory_format=torch.channels_last) for level in self.levels]

    def layers(self):
        return [list(self.levels.parameters())]

    def last_stage(self):
        return [self.levels[-1]]
'''
NEW_FILES = {
    "encoder": {"encoders/plain.py": ENCODER},
    "loss term": {"training/losses/absolute.py": LOSS},
    "output format": {"inference/npy.py": FORMAT},
}
NEW_TEXT = {
    "encoder": {
        "encoders/registry.py": [
            ("ENCODERS: Mapping[str, str] = {\n", '    "plain": "sam2_3dmed.encoders.plain:PlainEncoder",\n')
        ]
    },
    "output format": {
        "inference/output.py": [
            (
                "FORMATS: Mapping[str, Writer] = {\n",
                '    "npy": Writer(".npy", "sam2_3dmed.inference.npy:write_npy"),\n',
            )
        ]
    },
    "switch": {
        "config/schema.py": [("    boundary_fusion: bool = True\n", "    double_fusion: bool = False\n")],
        "model/build.py": [("residual=config.fusion_residual", ", double=config.double_fusion")],
        "model/boundary.py": [
            ("attention: bool = True, residual: bool = False", ", double: bool = False"),
            ("        self.residual = residual\n", "        self.double = double\n"),
            ("        tokens = self.mlp(self.norm(tokens)) + tokens", " * (2 if self.double else 1)"),
        ],
    },
}
"""addition -> file -> where a text is inserted, and the text"""
TRAIN = ["slab_slices=2", "model.size=nano", "model.image_size=64", "model.double_fusion=true"]
TRAIN += ["model.encoder=plain", "training.epochs=1", "training.single_slice_fraction=0"]
TRAIN += ["training.samples_per_epoch=2", "training.batch_size=2"]
TRAIN += ["training.workers=0", "loss.terms={absolute: 1, dice: 1, boundary: 0.1}"]
SCRIPT = """
import sys
from sam2_3dmed.cli.main import app

for arguments in sys.argv[1:]:
    app(arguments.split("|"), standalone_mode=False)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with all additions; the folder above it."""
    root = tmp_path_factory.mktemp("extended")
    package = root / "sam2_3dmed"
    shutil.copytree(ROOT / "src" / "sam2_3dmed", package, ignore=shutil.ignore_patterns("__pycache__"))
    for files in NEW_FILES.values():
        for name, text in files.items():
            assert not (package / name).exists()
            (package / name).write_text(text)
    for files in NEW_TEXT.values():
        for name, insertions in files.items():
            text = (package / name).read_text()
            for place, addition in insertions:
                assert text.count(place) == 1, f"{name}: {place!r} is not there once"
                text = text.replace(place, place + addition)
            (package / name).write_text(text)
    return root


def test_additions_work_from_training_to_the_mask(package: Path, blobs: Path, tmp_path: Path) -> None:
    run, image = tmp_path / "run", blobs / "imagesTr" / "blob_00.nii.gz"
    train = ["train", blobs, "--out", run, "--weights", "none", *(part for text in TRAIN for part in ("--set", text))]
    predict = ["predict", image, "-m", run, "-o", tmp_path / "masks", "--format", "npy"]
    commands = ["|".join(map(str, command)) for command in (train, predict)]
    environment = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *commands], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    recipe = yaml.safe_load((run / "config.yaml").read_text())["recipe"]
    assert recipe["model"]["double_fusion"] is True
    assert recipe["model"]["encoder"] == "plain"
    assert "train/absolute" in (run / "curves.csv").read_text().splitlines()[0]
    mask = np.load(tmp_path / "masks" / "blob_00.npy")
    assert mask.shape == Volume.read(image).shape


@pytest.mark.parametrize(
    ("words", "files", "lines"),
    [("an encoder", 1, "1"), ("a loss term", 1, "0"), ("an output format", 1, "1"), ("a switch", 0, "3 files")],
)
def test_the_table_says_so(words: str, files: int, lines: str) -> None:
    rows = re.findall(
        r"^\| (an? .+?) \| .+? \| (\d) \| (.+?) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    (found,) = [row for row in rows if row[0].startswith(words)]
    assert (int(found[1]), lines in found[2]) == (files, True)
    addition = next(name for name in {*NEW_FILES, *NEW_TEXT} if name in found[0])
    assert len(NEW_FILES.get(addition, {})) == files
    touched = NEW_TEXT.get(addition, {})
    if "files" in lines:
        assert len(touched) == 3
    else:
        assert sum(text.count("\n") for insertions in touched.values() for _, text in insertions) == int(lines)
