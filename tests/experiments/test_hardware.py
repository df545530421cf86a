"""What is noted of a machine is there, and JSON can hold it."""

import json

from sam2_3dmed.experiments.hardware import hardware


def test_this_machine():
    found = hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["processor"]
    assert found["processors"] >= 1
    assert found["threads"] >= 1
