"""What all tests share: where the real data is, which tests this machine can run, and what makes results repeat."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SAM2_3DMED_DATA", ROOT.parent / "shared" / "data"))
SKIP_IS_FAILURE = os.environ.get("SAM2_3DMED_REQUIRE_DATA") == "1"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Sums depend on how many threads share them; torch and NumPy read these when they are first imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "2")
os.environ.setdefault("MPLBACKEND", "Agg")

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--run-network", action="store_true", help="run the tests marked network (or SAM2_3DMED_NETWORK=1)"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with the reason, a marked test that this machine cannot run."""
    if item.get_closest_marker("network") and not _network(item.config):
        pytest.skip("needs the network: --run-network or SAM2_3DMED_NETWORK=1")
    if item.get_closest_marker("browser") and not any(map(shutil.which, BROWSERS)):
        pytest.skip("needs Chromium")
    if item.get_closest_marker("gpu") and not _cuda():
        pytest.skip("needs a CUDA device")


def _network(config: pytest.Config) -> bool:
    return bool(config.getoption("--run-network")) or os.environ.get("SAM2_3DMED_NETWORK") == "1"


def _cuda() -> bool:
    import torch  # here: most tests do without it

    return torch.cuda.is_available()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Where the real data is required, a test that uses it fails instead of being skipped."""
    report = yield
    if SKIP_IS_FAILURE and report.skipped and not hasattr(report, "wasxfail") and "shared_data" in item.fixturenames:
        report.outcome = "failed"
        report.longrepr = f"skipped, but SAM2_3DMED_REQUIRE_DATA=1: {report.longrepr[2]}"
    return report


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real volumes; set SAM2_3DMED_DATA to use another than ../shared/data."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}; set SAM2_3DMED_DATA to its folder")
    return DATA
