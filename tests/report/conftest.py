"""A headless Chromium that a test can ask what is on a page and what its console says; the protocol over two pipes."""

import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
SECONDS = 120.0


class Browser:
    """One tab. `errors` holds what the console and the network complained about, `requests` all that was asked for."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._commands = os.pipe()
        self._answers, from_browser = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4; a shell moves them there.
        line = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        arguments = ["bash", "-c", line, "bash", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            arguments, pass_fds=(to_browser, from_browser), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.getTargets")["targetInfos"][0]["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, page: Path, width: int, height: int, ready: str = "true") -> None:
        """Show a file in a window of that size, and wait until the expression `ready` is true."""
        self.errors, self.requests = [], []
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + SECONDS
        while not self.ask(f"document.readyState === 'complete' && Boolean({ready})"):
            assert time.monotonic() < deadline, f"the page is never ready: {self.errors}"
            time.sleep(0.2)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, selector: str | None = None) -> NDArray[np.float64]:
        """The pixels of an element, or of the whole page, (rows, columns, 3) in [0, 1]."""
        script = f"""(() => {{
            const box = {f"document.querySelector({json.dumps(selector)})" if selector else "document.documentElement"}
                .getBoundingClientRect();
            return [box.x + scrollX, box.y + scrollY, box.width, box.height];
        }})()"""
        x, y, width, height = self.ask(script)
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        answer = self._call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        pixels: NDArray[np.float64] = imread(io.BytesIO(base64.b64decode(answer["data"])))[..., :3]
        return pixels

    def close(self) -> None:
        os.close(self._commands)  # Chromium ends when nobody can give it commands any more
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def _call(self, method: str, **parameters: Any) -> Any:
        message = {"id": next(self._numbers), "method": method, "params": parameters}
        if not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _next(self) -> Any:
        while b"\0" not in self._buffer:
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser is gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, event: str, details: Any) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(str(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "assert"):
            self.errors.append(str([argument.get("value") for argument in details["args"]]))
        elif event == "Log.entryAdded" and details["entry"]["level"] == "error":
            self.errors.append(details["entry"]["text"])


@pytest.fixture(scope="session")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(chromium, tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


HOSTILE = "one<img src=x onerror=alert(1)>"
SHIFTS = {HOSTILE: 1, "two": 0, "three": 3}
METRICS = ("dice", "hd95_mm", "volume_error_ml")
LABELS = {1: "bright <b>organ</b>", 3: "dark"}


@pytest.fixture(scope="session")
def hostile() -> str:
    """The name of a case that must not become markup."""
    return HOSTILE


@pytest.fixture(scope="session")
def data(blobs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real volumes in MSD layout."""
    root = tmp_path_factory.mktemp("report") / "data"
    entries = []
    for number, name in enumerate(SHIFTS):
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(blobs / folder / f"blob_{number:02d}.nii.gz", root / folder / f"{name}.nii.gz")
        entries.append({"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"})
    labels = {"0": "background", **{str(value): name for value, name in LABELS.items()}}
    content = {"name": "Blobs", "modality": {"0": "CT"}, "labels": labels, "training": entries}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training and testing leave it: a model that has learned nothing, and as masks the truth shifted
    by so many voxels, so that there is something to see."""
    import torch

    from sam2_3dmed.config import ChannelPlan, Plan, paper, with_settings
    from sam2_3dmed.evaluation.cases import evaluate_cases
    from sam2_3dmed.run.build_model import make_model
    from sam2_3dmed.run.run_folder import remember_data, save_model
    from sam2_3dmed.volume.label import read_label

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("report") / "run"
    channel = ChannelPlan(name="CT", normalisation="fixed", low=-130, high=130)
    plan = Plan(dataset="Blobs", channels=(channel,), labels=LABELS, slab_slices=3)
    recipe = with_settings(paper(), ["model.size=nano", "model.image_size=64", "slab_slices=3"])
    (folder / "predictions").mkdir(parents=True)
    save_model(*make_model(recipe, plan, "none"), folder)
    remember_data(folder, data)
    pairs = []
    for name, shift in SHIFTS.items():
        truth = data / "labelsTr" / f"{name}.nii.gz"
        mask = folder / "predictions" / truth.name
        label = read_label(truth)
        label.with_array(np.roll(label.array, -shift, axis=1)).write(mask)  # nothing is at that border
        pairs.append((name, mask, truth))
    evaluate_cases(pairs, LABELS, workers=0).write(folder / "evaluation")
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())
    summary["metrics"] = {metric: summary["metrics"][metric] for metric in METRICS}  # a picture each: a few will do
    (folder / "evaluation" / "summary.json").write_text(json.dumps(summary))
    (folder / "curves.csv").write_text(
        "epoch,step,train/total,train/boundary,learning_rate,validation/dice\n0,5,1.5,0.4,0.01,\n1,10,0.7,0.1,0.001,0.5\n"
    )
    return folder


@pytest.fixture(scope="session")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of such a run, in its folder."""
    from sam2_3dmed.report.build import write_report

    return write_report(Path(shutil.copytree(finished_run, tmp_path_factory.mktemp("report") / "reported")))


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))
