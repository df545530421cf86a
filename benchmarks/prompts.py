"""A box on one slice, and no training: Dice of the whole object, beside region growing from the same box.

    python benchmarks/prompts.py Task04_Hippocampus Task91_SarcomaCT --results rows.jsonl
    python benchmarks/prompts.py Task04_Hippocampus --model runs/pretrained --cases 5

Each class of each labelled case is an object. The box lies around it on the slice with most of it. The third axis of
the files runs along the body. The model is `nano`, which has seen made-up anatomy alone. The peer is SimpleITK's
ConfidenceConnected after its CurvatureFlow: it grows from the voxels in the middle third of the box, for each of some
multipliers. The table has the multiplier that is best on average over the objects of a data set, which is more than a
user could know. A second peer knows the box alone: an ellipsoid, as wide as the box on that slice, and through the
others as far as half of its smaller side in mm. Intervals are bootstrap intervals over cases. Without arguments it says
what it needs, and measures nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_screen import add_row, read_rows

MULTIPLIERS = (1.0, 1.5, 2.0, 2.5, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--model", default="nano", help="a run of `pretrain`, or nano")
    parser.add_argument("--cases", type=int, help="so many of each data set; without it all")
    parser.add_argument("--results", type=Path, help="a file of rows, one JSON object a line")
    arguments = parser.parse_args()
    if not arguments.data:
        print("nothing measured: it needs DATA, the folder of a data set; see --help")
        return

    from sam2_3dmed import load_model
    from sam2_3dmed.data.dataset import read_case, read_dataset

    model = load_model(arguments.model, device="cpu")
    found = read_rows(arguments.results)
    done = {(row["data"], row["case"], row["class"]) for row in found}
    for data in arguments.data:
        dataset = read_dataset(data)
        for case in dataset.cases[: arguments.cases]:
            volume, label = read_case(case)
            for value, name in dataset.labels.items():
                mask = label.array == value
                if mask.any() and (data.name, case.name, name) not in done:
                    row = {"data": data.name, "case": case.name, "class": name} | measure(model, volume, mask)
                    found.append(row)
                    add_row(arguments.results, row)
        report([row for row in found if row["data"] == data.name])


def measure(model: Any, volume: Any, mask: np.ndarray) -> dict[str, float]:
    """The Dice of each way to find an object (X, Y, Z) from its box on one slice."""
    from sam2_3dmed.evaluation.metrics import dice

    best = int(mask.sum(axis=(0, 1)).argmax())
    drawn = np.zeros(mask.shape, dtype=np.uint8)
    drawn[..., best] = mask[..., best]
    masks = {"model": model(volume, reference=volume.with_array(drawn)).array > 0}
    box = [(int(at.min()), int(at.max())) for at in np.nonzero(mask[..., best])]
    image = volume.array if volume.array.ndim == 3 else volume.array[..., 0]
    masks |= {
        f"grown_{m:g}": grown for m, grown in zip(MULTIPLIERS, grow(image, volume.spacing_mm, box, best), strict=True)
    }
    masks["ellipsoid"] = ellipsoid(mask.shape, volume.spacing_mm, box, best)
    return {name: round(float(dice(found, mask)), 4) for name, found in masks.items()}


def grow(image: np.ndarray, spacing: Any, box: list[tuple[int, int]], index: int) -> list[np.ndarray]:
    """SimpleITK's region growing for each multiplier, from the voxels in the middle third of the box."""
    import SimpleITK

    scan = SimpleITK.GetImageFromArray(np.ascontiguousarray(image.T, dtype=np.float32))
    scan.SetSpacing([float(side) for side in spacing])
    scan = SimpleITK.CurvatureFlow(scan, timeStep=0.0625, numberOfIterations=5)
    spans = [range(low + (high - low) // 3, high - (high - low) // 3 + 1) for low, high in box]
    seeds = [(x, y, index) for x in spans[0] for y in spans[1]]
    grown = (
        SimpleITK.ConfidenceConnected(
            scan, seedList=seeds, numberOfIterations=2, multiplier=multiplier, initialNeighborhoodRadius=1
        )
        for multiplier in MULTIPLIERS
    )
    return [SimpleITK.GetArrayViewFromImage(one).T > 0 for one in grown]


def ellipsoid(shape: tuple[int, ...], spacing: Any, box: list[tuple[int, int]], index: int) -> np.ndarray:
    """An ellipsoid in the box, through the slices as far as half of its smaller side in mm."""
    halves = [(high - low + 1) / 2 for low, high in box]
    through = min(half * side for half, side in zip(halves, spacing, strict=False)) / spacing[2]
    centres = [(low + high) / 2 for low, high in box] + [index]
    grid = np.ogrid[tuple(slice(0, side) for side in shape)]
    return sum(((g - c) / h) ** 2 for g, c, h in zip(grid, centres, [*halves, max(through, 0.5)], strict=True)) <= 1


def report(rows: list[dict[str, Any]]) -> None:
    """Print the mean Dice of each way over the objects of a data set."""
    from sam2_3dmed.evaluation.statistics import bootstrap_interval_of_mean

    if not rows:
        return
    multiplier = max(MULTIPLIERS, key=lambda m: np.mean([row[f"grown_{m:g}"] for row in rows]))
    for way in ("model", f"grown_{multiplier:g}", "ellipsoid"):
        cases = sorted({row["case"] for row in rows})
        of_cases = [float(np.mean([row[way] for row in rows if row["case"] == case])) for case in cases]
        low, high = bootstrap_interval_of_mean(of_cases) or (np.nan, np.nan)
        each = {
            name: np.mean([row[way] for row in rows if row["class"] == name]) for name in {r["class"]: 0 for r in rows}
        }
        text = ", ".join(f"{name} {value:.3f}" for name, value in each.items())
        print(
            f"{rows[0]['data']}, {way}: {np.mean(of_cases):.3f} [{low:.3f}, {high:.3f}] ({text}; {len(rows)} objects)"
        )


if __name__ == "__main__":
    main()
