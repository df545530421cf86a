"""The plan of a data set, made once for all runs on it, so that no run reads the whole data set again."""

import hashlib
import json
from pathlib import Path

from sam2_3dmed.config import SplitConfig
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan, write_plan_yaml
from sam2_3dmed.data.splits import split_cases
from sam2_3dmed.processes.map_cases import progress_bar


def plan_file(out: Path, data: Path, content: str, split: SplitConfig) -> Path:
    """The file of the plan below `out`, which is made if need be, as training would: from the training cases alone.

    data: the data set's folder. content: a checksum of it.

    Raises:
        DataError: data that cannot be used.
    """
    key = hashlib.sha256(json.dumps([content, split.model_dump()]).encode()).hexdigest()[:12]
    path = out / "plans" / f"{data.name}-{key}.yaml"
    if not path.is_file():
        catalog = read_dataset(data)
        parts = split_cases(catalog.names, split)
        with progress_bar("Reading cases") as progress:
            found = fingerprint(catalog.subset({*parts.train, *parts.validation}), progress=progress)
        write_plan_yaml(propose_plan(found, parts.train), path)
    return path
