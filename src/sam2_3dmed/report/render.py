"""Still pictures of meshes: orthographic, shaded, with a depth buffer; numpy only."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.report.meshes import Floats, Mesh

# From the front, a little from the patient's left and from above, in RAS: what points right, up and at the viewer.
_AZIMUTH, _ELEVATION = np.radians(-35), np.radians(20)
_OVERSAMPLING = 2
_MARGIN = 0.06
_AMBIENT = 0.35
_SAMPLES_A_PIXEL = 1.25


def view_axes() -> Floats:
    """(3, 3): the directions, in RAS, that point right, up and at the viewer."""
    toward = np.array(
        [
            np.sin(_AZIMUTH) * np.cos(_ELEVATION),
            np.cos(_AZIMUTH) * np.cos(_ELEVATION),
            np.sin(_ELEVATION),
        ]
    )
    right = np.cross((0, 0, 1), toward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(toward, right), toward])


def bounds(meshes: Sequence[Mesh]) -> tuple[Floats, float]:
    """The centre, in view axes, and the half width in mm of a square picture that holds all meshes."""
    points = np.concatenate([mesh.vertices for mesh in meshes]) @ view_axes().T
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, float((high - low)[:2].max() / 2 * (1 + 2 * _MARGIN)) or 1.0


def render(
    meshes: Sequence[tuple[Mesh, NDArray[np.floating]]], size: int, centre: Floats, half_width_mm: float
) -> NDArray[np.uint8]:
    """(size, size, 3) uint8 on white. meshes: each with its vertices' colours, (n, 3) in [0, 1], or one colour (3,)."""
    wide = size * _OVERSAMPLING
    pixels_per_mm = wide / (2 * half_width_mm)
    canvas = np.ones((wide * wide, 3))
    samples = [_samples(mesh, colours, centre, pixels_per_mm, wide) for mesh, colours in meshes]
    if samples:
        places, depths, colours = (np.concatenate(parts) for parts in zip(*samples, strict=True))
        order = np.argsort(depths, kind="stable")  # the nearest is written last and stays
        canvas[places[order]] = colours[order]
    mean: Floats = canvas.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean(axis=(1, 3))
    return (mean * 255).round().astype(np.uint8)


def _samples(
    mesh: Mesh, colours: NDArray[np.floating], centre: Floats, pixels_per_mm: float, wide: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Points all over the mesh, closer than pixels: the pixel each falls on, its depth and its shaded colour."""
    seen = (mesh.vertices @ view_axes().T - centre) * [pixels_per_mm, -pixels_per_mm, pixels_per_mm]
    seen[:, :2] += wide / 2
    light = _AMBIENT + (1 - _AMBIENT) * np.abs(_normals(mesh) @ view_axes()[2])
    shaded = np.broadcast_to(colours, (len(seen), 3)) * light[:, None]
    values = np.concatenate([seen, shaded], axis=1).astype(np.float32)[mesh.triangles]  # (m, 3 corners, 6)
    values = values[_turned_to_viewer(values)]
    edges = np.abs(values[:, :, :2] - np.roll(values[:, :, :2], 1, axis=1)).max(axis=(1, 2))
    steps = np.maximum(1, np.ceil(edges * _SAMPLES_A_PIXEL)).astype(int)
    points = [np.empty((0, 6), dtype=np.float32)]
    for count in np.unique(steps).tolist():
        points.append((_barycentric(count) @ values[steps == count]).reshape(-1, 6))
    samples = np.concatenate(points)
    columns, rows = np.floor(samples[:, :2]).astype(np.int64).T
    inside = (columns >= 0) & (columns < wide) & (rows >= 0) & (rows < wide)
    return (rows * wide + columns)[inside], samples[inside, 2], samples[inside, 3:]


def _turned_to_viewer(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which triangles show their outside; the others are behind them, since surfaces are closed."""
    first, second = values[:, 1, :2] - values[:, 0, :2], values[:, 2, :2] - values[:, 0, :2]
    # Rows run down, so that counter-clockwise is negative.
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0


def _barycentric(steps: int) -> NDArray[np.float32]:
    """(s, 3): weights of the corners at all points of a triangle whose edges are cut into `steps`."""
    i, j = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1), indexing="ij")
    inside = i + j <= steps
    i, j = i[inside], j[inside]
    return (np.stack([i, j, steps - i - j], axis=1) / steps).astype(np.float32)


def _normals(mesh: Mesh) -> Floats:
    """(n, 3): at each vertex the mean direction of its triangles, by area."""
    corners = mesh.vertices[mesh.triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(mesh.vertices)
    for corner in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(mesh.triangles[:, corner], faces[:, axis], minlength=len(normals))
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    unit: Floats = normals / np.maximum(lengths, 1e-12)
    return unit
