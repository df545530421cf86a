"""A cohort to predict, as something that any process on any machine can do a part of."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sam2_3dmed.inference.batch import Outcome, Results
from sam2_3dmed.inference.inputs import Input
from sam2_3dmed.inference.interface import Segmenter
from sam2_3dmed.inference.predictor import Predictor

logger = logging.getLogger(__name__)

Report = Callable[[int, Outcome], None]
"""Called with the number and the outcome of each input, from any thread."""


@dataclass(frozen=True)
class Job:
    """What is done with every input. It can be pickled.

    model: run folder; options: of `Predictor.load`, besides the device.
    """

    model: Path
    results: Results
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, device: str | None) -> Segmenter:
        """The predictor.

        Raises:
            UserError: no finished run, or no such device.
        """
        return Predictor.load(self.model, device=device, **self.options)

    def on_another_host(self) -> "Job":
        """The same for a process that is not on the machine that began the job: its manifest is another file."""
        if self.results.manifest is None:
            return self
        return replace(self, results=replace(self.results, manifest=self.results.manifest.of_this_host()))


Runner = Callable[[Job, Sequence[Input], Report], None]
"""A way to do a job: here, in processes, on a cluster. It reports every input once."""


def run_job(
    job: Job,
    inputs: Sequence[Input],
    runner: Runner,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    overwrite: bool = False,
) -> list[Outcome]:
    """Predict the inputs that are not finished; `overwrite` does all again.

    Raises:
        UserError: the model cannot be loaded, a folder cannot be made, or a mask would replace an input.
    """
    job.results.make_room(inputs)
    outcomes: dict[int, Outcome] = {}
    manifest = job.results.manifest
    if manifest is not None and overwrite:
        manifest.forget(inputs)
    for index, finished in enumerate(manifest.finished(inputs) if manifest is not None else []):
        if finished:
            outcomes[index] = Outcome(inputs[index].name, job.results.mask_file(inputs[index]), None, earlier=True)
    if outcomes:
        logger.info("%d of %d are finished and whole already", len(outcomes), len(inputs))
        progress(len(outcomes), len(inputs))
    missing = [index for index in range(len(inputs)) if index not in outcomes]

    def report(number: int, outcome: Outcome) -> None:
        outcomes[missing[number]] = outcome
        progress(len(outcomes), len(inputs))

    if missing:
        runner(job, [inputs[index] for index in missing], report)
    return [outcomes[index] for index in range(len(inputs))]
