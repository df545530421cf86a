"""The paper's section 3, a part a file.

Letters in every docstring below: B batch, D slices in a slab, C feature channels, K foreground classes, H x W the
input size in pixels, h x w the feature grid (stride 16).
"""
