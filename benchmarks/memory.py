"""Peak memory and seconds of a prediction against the number of slices, each in a fresh process.

    python benchmarks/memory.py [--slices 200 800] [--models nano tiny] [--direction forward] [--threads 2]
    python benchmarks/memory.py --size 128 --slices 40 160 --models nano          (a trial: a minute)
    python benchmarks/memory.py --recipe paper+slice_mixing

Synthetic CTs of 512 x 512 int16 as .nii.gz, random weights, slabs of 6 with overlap 0.5. With --recipe the network and
the way of predicting are those of a recipe, slabs of 24 if it asks for none. A process reads the file,
predicts, and writes the mask. "Growth" is how much more the longest CT takes than the shortest, as a share of what its
further slices take as int16 input and uint8 mask: 1.2 at most is the claim, and 4.2 for the ratio of seconds at four
times the slices. Memory is the process's peak (ru_maxrss): Python, PyTorch and the network are in it.
Seconds are the clock's and the processor's: where other work runs, or the process is stopped for a while, only the
latter compare.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from synthetic_ct import make_in_process, peak_mb, random_predictor, run_alone


def measure(file: str, model: str, settings: str) -> None:
    """In a process of its own; one line of JSON."""
    predictor = random_predictor(model, **json.loads(settings))

    from sam2_3dmed.volume.volume import Volume

    before, started, worked = peak_mb(), time.perf_counter(), time.process_time()
    mask = predictor(Volume.read(file))
    computed = time.perf_counter() - started
    mask.write(Path(file).with_name("mask.nii.gz"))
    seconds = time.perf_counter() - started
    found = {"seconds": seconds, "computed": computed, "processor": time.process_time() - worked}
    print(json.dumps(found | {"before_mb": before, "peak_mb": peak_mb()}))


def settings_of(name: str) -> dict[str, Any]:
    """The arguments of `random_predictor` for a recipe."""
    from sam2_3dmed.config import read_recipe

    recipe = read_recipe(name)
    inference = recipe.inference.model_dump(mode="json")
    return {**inference, "network": recipe.model.model_dump(mode="json"), "slab_slices": recipe.slab_slices or 24}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, nargs="+", default=[200, 800])
    parser.add_argument("--models", nargs="+", default=["nano", "tiny"])
    parser.add_argument("--image-size", type=int, help="without it 512, and 96 for nano")
    parser.add_argument("--mode", default="slabs")
    parser.add_argument("--direction", default="forward")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--recipe", help="instead of --mode, --direction and --batch-size")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return
    settings = {"mode": arguments.mode, "direction": arguments.direction, "batch_size": arguments.batch_size}
    if arguments.recipe:
        settings = settings_of(arguments.recipe)
    settings |= {"image_size": arguments.image_size}
    told = arguments.recipe or settings
    print(f"{os.cpu_count()} CPU cores, {arguments.threads or 'all'} threads, load {os.getloadavg()[0]:.1f}; {told}")
    with tempfile.TemporaryDirectory() as folder:
        files = {count: Path(folder) / f"ct_{count}.nii.gz" for count in sorted(arguments.slices)}
        for count, file in files.items():
            make_in_process(file, arguments.size, count)
            stored = arguments.size**2 * count * 2
            ratio = stored / file.stat().st_size
            print(f"CT of {count} slices: {stored / 1e6:.0f} MB as int16, {ratio:.1f} times what it is in its file")
        for model in arguments.models:
            found = {}
            for count, file in files.items():
                options = ("--measure", str(file), model, json.dumps(settings))
                found[count] = one = run_alone(__file__, *options, threads=arguments.threads)
                print(
                    f"{model:5} {count:4} slices: peak {one['peak_mb']:6.0f} MB ({one['before_mb']:.0f} before the CT),"
                    f" {one['seconds']:7.1f} s, of which writing {one['seconds'] - one['computed']:.2f};"
                    f" processor {one['processor']:.1f} s",
                    flush=True,
                )
            low, *_, high = files
            both = (high - low) * arguments.size**2 * 3 / 1e6  # int16 and uint8
            growth = found[high]["peak_mb"] - found[low]["peak_mb"]
            times = [found[high][key] / found[low][key] for key in ("seconds", "processor")]
            print(
                f"{model:5} growth {growth:.0f} MB, {growth / both:.2f} times input and mask;"
                f" {times[0]:.2f} times the seconds, {times[1]:.2f} times the processor's,"
                f" for {high / low:g} times the slices",
                flush=True,
            )


if __name__ == "__main__":
    main()
