"""The plan that all runs on a data set share."""

from sam2_3dmed.config import SplitConfig
from sam2_3dmed.data.dataset import read_dataset
from sam2_3dmed.data.fingerprint import fingerprint
from sam2_3dmed.data.plan import propose_plan, read_plan_yaml
from sam2_3dmed.data.splits import split_cases
from sam2_3dmed.experiments.plans import plan_file


def test_is_made_once_from_the_training_cases(blobs, tmp_path):
    path = plan_file(tmp_path, blobs, "abc", SplitConfig())
    catalog = read_dataset(blobs)
    assert read_plan_yaml(path) == propose_plan(fingerprint(catalog), split_cases(catalog.names, SplitConfig()).train)
    path.write_text(path.read_text().replace("slab_slices: 3", "slab_slices: 4"))  # a person's change stays
    assert plan_file(tmp_path, blobs, "abc", SplitConfig()) == path
    assert read_plan_yaml(path).slab_slices == 4


def test_another_split_or_other_data_have_another(blobs, tmp_path):
    files = {
        plan_file(tmp_path, blobs, "abc", SplitConfig()),
        plan_file(tmp_path, blobs, "abd", SplitConfig()),
        plan_file(tmp_path, blobs, "abc", SplitConfig(seed=1)),
    }
    assert len(files) == 3
