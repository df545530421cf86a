"""What all tests share: where the real data is, which tests this machine can run, and what makes results repeat."""

import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SAM2_3DMED_DATA", ROOT.parent / "shared" / "data"))
SKIP_IS_FAILURE = os.environ.get("SAM2_3DMED_REQUIRE_DATA") == "1"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Sums depend on how many threads share them; torch and NumPy read these when they are first imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--run-network", action="store_true", help="run the tests marked network (or SAM2_3DMED_NETWORK=1)"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, a marked test that this machine cannot run."""
    reason = _lacking(item)
    if reason:
        pytest.skip(reason)


def _lacking(item: pytest.Item) -> str | None:
    if item.get_closest_marker("network") and not _network(item.config):
        return "needs the network: --run-network or SAM2_3DMED_NETWORK=1"
    if item.get_closest_marker("browser") and not any(map(shutil.which, BROWSERS)):
        return "needs Chromium"
    if item.get_closest_marker("gpu") and not _cuda():
        return "needs a CUDA device"
    return None


def _network(config: pytest.Config) -> bool:
    return bool(config.getoption("--run-network")) or os.environ.get("SAM2_3DMED_NETWORK") == "1"


def _cuda() -> bool:
    import torch  # here: most tests do without it

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where the real data is required, a test that uses it fails instead of being skipped for anything but a marker."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail") and not _lacking(item)
    if SKIP_IS_FAILURE and skipped and "shared_data" in item.fixturenames:
        report.outcome = "failed"
        report.longrepr = f"skipped, but SAM2_3DMED_REQUIRE_DATA=1: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes; set SAM2_3DMED_DATA to use another than ../shared/data."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}; set SAM2_3DMED_DATA to its folder")
    return DATA


@pytest.fixture(scope="session")
def chromium() -> str:
    """The program that tests marked `browser` run."""
    return next(filter(None, map(shutil.which, BROWSERS)))


@pytest.fixture(scope="session")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in MSD layout that a network learns in seconds: 12 volumes with a bright and a dark ball."""
    import json

    import numpy as np

    from sam2_3dmed.volume.volume import Volume

    root = tmp_path_factory.mktemp("blobs")
    rng = np.random.default_rng(0)
    affine = np.diag([-1.5, -1.5, 3.0, 1.0])
    entries = []
    for number in range(12):
        grid = np.stack(np.meshgrid(*map(np.arange, (24, 28, 7)), indexing="ij"), axis=-1)
        bright, dark = (np.linalg.norm((grid - c) * (1, 1, 2), axis=-1) < 6 for c in ((7, 9, 3), (16, 19, 3)))
        label = np.where(bright, 1, np.where(dark, 3, 0)).astype(np.uint8)
        image = (100 * bright - 100 * dark + rng.normal(0, 10, label.shape)).astype(np.int16)
        name = f"blob_{number:02d}.nii.gz"
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            (root / folder).mkdir(exist_ok=True)
            Volume(array, affine).write(root / folder / name)
        entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    content = {
        "name": "Blobs",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "bright", "3": "dark"},
        "training": entries,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def make_exported(tmp_path_factory: pytest.TempPathFactory):
    """Run folders and their ONNX exports, made once each; see `_write_random_run`. Slabs of 3 slices, and of 2."""
    made: dict[tuple[int, bool], tuple[Path, Path]] = {}

    def make(num_classes: int = 2, parts: bool = True) -> tuple[Path, Path]:
        from sam2_3dmed.export.run import export_run

        if (num_classes, parts) not in made:
            folder = tmp_path_factory.mktemp("onnx")
            run = _write_random_run(folder / "run", num_classes=num_classes, parts=parts)
            export_run(run, folder / "exported", lengths=[2] if parts else [])
            made[num_classes, parts] = run, folder / "exported"
        return made[num_classes, parts]

    return make


@pytest.fixture(scope="session")
def write_random_run():
    """See `_write_random_run`."""
    return _write_random_run


def _write_random_run(
    folder: Path, *, num_classes: int = 2, parts: bool = True, seed: int = 0, changes: tuple[str, ...] = ()
) -> Path:
    """A run folder of a nano network with random weights, 64 pixels, D = 3. parts: with SRPP and BD.

    What is zero in a new network is random, too, so that every part has its say.
    """
    import torch

    from sam2_3dmed.config import ChannelPlan, Plan, paper, with_settings
    from sam2_3dmed.run.build_model import make_model
    from sam2_3dmed.run.run_folder import save_model

    channel = ChannelPlan(name="MRI", normalisation="fixed", low=-100, high=200)
    labels = {value: f"organ {value}" for value in range(1, num_classes + 1)}
    settings = ["model.size=nano", "model.image_size=64", "slab_slices=3"]
    settings += [*([] if parts else ["model.srpp=false", "model.boundary=false"]), *changes]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        plan = Plan(dataset="Random", channels=(channel,), labels=labels)
        network, record = make_model(with_settings(paper(), settings), plan, "none")
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
    save_model(network, record, folder)
    return folder


@pytest.fixture(scope="session")
def write_series():
    """Writes a DICOM series of known voxels and place; see `_write_series`."""
    return _write_series


@pytest.fixture(scope="session")
def stored_voxels():
    """Makes (X, Y, Z) int16 values as a scanner stores them, every slice different."""
    import numpy as np

    def make(shape=(9, 7, 5)):
        return np.random.default_rng(0).integers(-500, 3000, shape).astype(np.int16)

    return make


def _header(shape, position, directions, spacing_mm, **changes):
    """One CT slice without pixels; changes: elements of other values, None takes one away."""
    from pydicom import Dataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    made = Dataset()
    elements = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "PatientID": "P1",
        "PatientName": "Test^Case",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": "1.2.3",
        "StudyID": "1",
        "StudyDate": "20200101",
        "StudyTime": "101010",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "Manufacturer": "",
        "SeriesInstanceUID": "1.2.3.4",
        "SeriesNumber": 4,
        "SeriesDescription": "thin",
        "Modality": "CT",
        "FrameOfReferenceUID": "1.2.3.9",
        "PositionReferenceIndicator": "",
        "InstanceNumber": 1,
        "ImagePositionPatient": [float(f"{v:.9f}") for v in position],
        "ImageOrientationPatient": [float(f"{v:.9f}") for v in directions.ravel()],
        "PixelSpacing": [spacing_mm[1], spacing_mm[0]],
        "SliceThickness": spacing_mm[2],
        "Rows": shape[1],
        "Columns": shape[0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    for keyword, value in (elements | changes).items():
        if value is not None:
            setattr(made, keyword, value)
    made.ensure_file_meta()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def _write_series(
    folder: Path,
    array,
    *,
    directions=((1, 0, 0), (0, 1, 0)),
    spacing_mm=(0.75, 0.5, 2.0),
    origin=(10.0, -20.0, 30.0),
    syntax=None,
    each=lambda place: {},
    **changes,
) -> Any:
    """Write a CT series: a slice a file, in names that do not follow the order; returns the affine (RAS) it must have.

    each: changes for the slice at a place; `None` instead of changes leaves the slice out.
    """
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    directions = np.array(directions, float)
    step = np.cross(*directions) * spacing_mm[2]
    for place in range(array.shape[2]):
        own = each(place)
        if own is None:
            continue
        plane = _header(array.shape, np.array(origin) + place * step, directions, spacing_mm, **(changes | own))
        plane.PixelData = np.ascontiguousarray(array[:, :, place].T).tobytes()
        if syntax is not None:
            plane.compress(syntax)
        plane.save_as(folder / f"{(place * 7) % 101:03d}_{place}.dcm", enforce_file_format=True)
    lps = np.eye(4)
    lps[:3, :3] = np.column_stack([directions[0] * spacing_mm[0], directions[1] * spacing_mm[1], step])
    lps[:3, 3] = origin
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps


@pytest.fixture(scope="session")
def blob_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder for volumes as in `blobs`: the nano model with random weights, for 64 x 64 pixels."""
    import torch

    from sam2_3dmed.config import ChannelPlan, Plan, paper, with_settings
    from sam2_3dmed.run.build_model import make_model
    from sam2_3dmed.run.run_folder import save_model

    folder = tmp_path_factory.mktemp("blob_run") / "run"
    folder.mkdir()
    channel = ChannelPlan(name="CT", normalisation="fixed", low=-130, high=130)
    plan = Plan(dataset="Blobs", channels=(channel,), labels={1: "bright", 3: "dark"}, slab_slices=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = with_settings(paper(), ["model.size=nano", "model.image_size=64", "slab_slices=3"])
        network, record = make_model(recipe, plan, "none")
        with torch.no_grad():  # of what is zero in a new network nothing could be seen
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.05)
    save_model(network, record, folder)
    return folder


@pytest.fixture(scope="session")
def nano() -> Any:
    """Builds a nano network of two classes at 64 pixels in eval mode; equal seeds and switches give equal weights."""
    import torch

    from sam2_3dmed.config import NetworkConfig
    from sam2_3dmed.model.build import build_network

    def build(*, seed: int = 0, num_classes: int = 2, **switches: object) -> torch.nn.Module:
        torch.manual_seed(seed)
        return build_network(NetworkConfig(**{"size": "nano", "image_size": 64} | switches), num_classes).eval()

    return build


@pytest.fixture(scope="session")
def slab() -> Any:
    """Slices (B, D, C, 64, 64) in [0, 1]: coarse blobs, no two slices alike."""
    import torch

    def make(*, batch: int = 1, depth: int = 4, channels: int = 1, seed: int = 1) -> torch.Tensor:
        coarse = torch.rand(batch * depth, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.interpolate(coarse, (64, 64)).unflatten(0, (batch, depth))

    return make
