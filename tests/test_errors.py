"""What messages about names that do not exist end with."""

from sam2_3dmed.errors import suggest


def test_the_nearest_name_if_one_is_near_else_all():
    known = ["unet", "nnformer", "universal"]
    assert suggest("uent", known) == "did you mean 'unet'?"
    assert suggest("xyz", known) == "known are unet, nnformer, universal"
    assert suggest("learning_rate", ["epochs", "minutes"]) == "known are epochs, minutes"
