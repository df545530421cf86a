"""`curves.csv`: a row an epoch with loss terms, learning rate, gradients, position errors and validation metrics."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from sam2_3dmed.processes.atomic import write_text
from sam2_3dmed.training.distributed import gather
from sam2_3dmed.training.run_module import RunModule


class CurvesFile(Callback):
    """Appends a row at the end of every epoch and tells the loggers; a resumed run goes on where its checkpoint was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []
        self._validated = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the rows of the epochs before the one that comes."""
        if self.path.exists():
            with self.path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < trainer.current_epoch]

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note that this epoch has validation metrics."""
        self._validated = True

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write the file anew, with this epoch's row."""
        assert isinstance(pl_module, RunModule)
        means = pl_module.means.compute(gather)
        pl_module.means.clear()
        for logger in trainer.loggers:
            logger.log_metrics(means, step=trainer.global_step)
        validated = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if self._validated and "validation" in name  # those of an earlier epoch stay in there
        }
        self._validated = False
        if trainer.is_global_zero:
            self._rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **means, **validated})
            self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())
