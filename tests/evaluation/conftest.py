"""DeepMind's surface-distance as the oracle; it cannot take empty masks."""

import csv
import json
import warnings

import numpy as np
import pytest
import surface_distance


class SurfaceDistance:
    """The oracle's answers for a prediction and a truth, neither of them empty."""

    def __init__(self, prediction, truth, spacing_mm):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses names that scipy and numpy are about to drop
            self.distances = surface_distance.compute_surface_distances(truth, prediction, spacing_mm)

    def hausdorff(self, percent):
        return surface_distance.compute_robust_hausdorff(self.distances, percent)

    def assd(self):
        """Over both surfaces together; surface_distance itself gives the two directed means."""
        forth = self.distances["distances_gt_to_pred"], self.distances["surfel_areas_gt"]
        back = self.distances["distances_pred_to_gt"], self.distances["surfel_areas_pred"]
        return (np.dot(*forth) + np.dot(*back)) / (forth[1].sum() + back[1].sum())

    def nsd(self, tolerance_mm):
        return surface_distance.compute_surface_dice_at_tolerance(self.distances, tolerance_mm)


@pytest.fixture(scope="session")
def oracle():
    return SurfaceDistance


@pytest.fixture(scope="session")
def sphere():
    """A function that draws a sphere on a grid of 5 x 0.8 x 0.8 mm whose centre is a corner of voxels."""
    spacing_mm = (5.0, 0.8, 0.8)

    def draw(radius_mm, centre_mm=(0.0, 0.0, 0.0)):
        axes = [
            (np.arange(-round(50 / size), round(50 / size) + 1) + 0.5) * size - centre
            for size, centre in zip(spacing_mm, centre_mm, strict=True)
        ]
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        return x**2 + y**2 + z**2 <= radius_mm**2

    return draw


@pytest.fixture(scope="session")
def write_scores():
    """A function that writes cases.csv and summary.json as `evaluate` does, from given values."""

    def write(folder, values, metrics=None, **summary):
        """values: class -> metric -> list with a value per case; None is undefined. metrics: name -> better."""
        metrics = metrics or {"dice": "higher"}
        entries = {
            name: better if isinstance(better, dict) else {"definition": name, "unit": None, "better": better}
            for name, better in metrics.items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.json").write_text(json.dumps({"metrics": entries} | summary))
        with (folder / "cases.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "kind", "class", *metrics])
            for number in range(len(next(iter(next(iter(values.values())).values())))):
                for name, columns in values.items():
                    kind = name if name in ("mean", "union") else "class"
                    writer.writerow([f"case_{number}", kind, name, *(columns[metric][number] for metric in metrics)])
        return folder

    return write
