"""A data set of one labelled scan: blocks of its slices are the cases, so that some train and others test.

    python benchmarks/one_scan.py abdomen_ct_3mm OUT --classes spleen liver kidney_right kidney_left pancreas
    python benchmarks/cross_validation.py OUT --weights nano

DATA has image.nii.gz, label.nii.gz and label_names.json with names by value. Blocks that show none of the classes are
left out. What such a benchmark says is about this one body. Without arguments it says what it needs, and makes nothing.
"""

import argparse
import json
from pathlib import Path

import numpy as np

SLICES = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--classes", nargs="+", default=["spleen", "liver", "kidney_right", "kidney_left", "pancreas"])
    parser.add_argument("--slices", type=int, default=SLICES, help="of a block")
    arguments = parser.parse_args()
    if arguments.out is None:
        print("nothing made: it needs DATA and OUT; see --help")
        return
    names = make_blocks(arguments.data, arguments.out, arguments.classes, arguments.slices)
    print(f"{len(names)} cases of {arguments.slices} slices in {arguments.out}")


def make_blocks(data: Path, out: Path, classes: list[str], num_slices: int) -> list[str]:
    """Write the data set in MSD's layout. Returns: the names of its cases."""
    import nibabel as nib

    image, label = (nib.load(data / f"{name}.nii.gz") for name in ("image", "label"))
    described = json.loads((data / "label_names.json").read_text())
    by_name = {name: int(value) for value, name in described.get("v2", described).items()}
    found = np.asarray(label.dataobj)
    wanted = sum((found == by_name[name]).astype(np.uint8) * index for index, name in enumerate(classes, start=1))
    volumes = {"imagesTr": image, "labelsTr": nib.Nifti1Image(wanted, label.affine)}
    for folder in volumes:
        (out / folder).mkdir(parents=True)
    names = []
    for start in range(0, wanted.shape[2] - num_slices + 1, num_slices):
        stop = start + num_slices
        if wanted[:, :, start:stop].any():
            names.append(f"block_{start:03d}")
            for folder, volume in volumes.items():
                nib.save(volume.slicer[:, :, start:stop], out / folder / f"{names[-1]}.nii.gz")
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names]
    labels = {str(index): name for index, name in enumerate(["background", *classes])}
    described = {"name": "Blocks of one scan", "modality": {"0": "CT"}, "labels": labels, "training": training}
    (out / "dataset.json").write_text(json.dumps(described, indent=1))
    return names


if __name__ == "__main__":
    main()
