"""Surfaces of masks as meshes in world mm with their distances to each other, packed for the page or rendered."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sam2_3dmed.evaluation.masks import Floats, Mask, bounding_box

_SHRINK = 1.25
# The view is from the front, a little from the patient's left and from above.
_AZIMUTH, _ELEVATION = np.radians(-35), np.radians(20)
_OVERSAMPLING = 2
_MARGIN = 0.06
_AMBIENT = 0.35
_SAMPLES_A_PIXEL = 1.25


@dataclass(frozen=True, eq=False)
class Mesh:
    """A surface.

    Attributes:
        vertices: (n, 3), mm in RAS+ world space.
        triangles: (m, 3) int64, counter-clockwise seen from outside.
        distances_mm: (n,) to the nearest vertex of the other surface; infinite if there is none.
    """

    vertices: Floats
    triangles: NDArray[np.int64]
    distances_mm: Floats


def surface_meshes(first: Mask, second: Mask, affine: Floats, max_triangles: int) -> tuple[Mesh | None, Mesh | None]:
    """The surfaces of two (X, Y, Z) masks on one grid with the distances between them; None for an empty mask.

    Distances are measured before the meshes are simplified to `max_triangles`.
    """
    surfaces = [_surface(mask, affine) for mask in (first, second)]
    measured = [_measured(*pair) for pair in (surfaces, surfaces[::-1])]
    one, two = (mesh and simplified(mesh, max_triangles) for mesh in measured)
    return one, two


def _surface(mask: Mask, affine: Floats) -> Mesh | None:
    """The marching-cubes surface half way between voxels; it is closed where the mask touches the border."""
    from skimage import measure

    marching_cubes: Any = measure.marching_cubes  # it has no types
    box = bounding_box(mask)
    if box[0].stop == 0:
        return None
    padded = np.pad(mask[box], 1).astype(np.float32)
    # Ascent: outside is low, so that triangles are counter-clockwise from there.
    voxels, triangles, _, _ = marching_cubes(padded, 0.5, gradient_direction="ascent")
    voxels = voxels.astype(np.float64) + [side.start - 1 for side in box]
    if np.linalg.det(affine[:3, :3]) < 0:
        triangles = triangles[:, ::-1]
    vertices = voxels @ affine[:3, :3].T + affine[:3, 3]
    return Mesh(vertices, triangles.astype(np.int64), np.zeros(len(vertices)))


def _measured(mesh: Mesh | None, other: Mesh | None) -> Mesh | None:
    from scipy.spatial import cKDTree

    if mesh is None:
        return None
    if other is None:
        return replace(mesh, distances_mm=np.full(len(mesh.vertices), np.inf))
    return replace(mesh, distances_mm=np.asarray(cKDTree(other.vertices).query(mesh.vertices)[0]))


def simplified(mesh: Mesh, max_triangles: int) -> Mesh:
    """The mesh with at most `max_triangles`: the vertices in a cube of some mm become their mean."""
    edge_mm = np.linalg.norm(mesh.vertices[mesh.triangles[:, 0]] - mesh.vertices[mesh.triangles[:, 1]], axis=1).mean()
    size_mm, result = float(edge_mm), mesh
    while len(result.triangles) > max_triangles:
        size_mm *= _SHRINK
        result = _merged(mesh, size_mm)
    return result


def _merged(mesh: Mesh, size_mm: float) -> Mesh:
    cells = np.floor((mesh.vertices - mesh.vertices.min(axis=0)) / size_mm).astype(np.int64)
    _, new, counts = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    new = new.ravel()
    columns = [np.bincount(new, values) / counts for values in (*mesh.vertices.T, mesh.distances_mm)]
    triangles = new[mesh.triangles]
    flat = (triangles == np.roll(triangles, 1, axis=1)).any(axis=1)
    return Mesh(np.stack(columns[:3], axis=1), triangles[~flat], columns[3])


def packed(mesh: Mesh, origin_mm: Floats, limit_mm: float) -> dict[str, Any]:
    """The mesh for the page's script: little-endian numbers in base64.

    Vertices are uint16 steps of `step_mm` from `low_mm`, which is relative to `origin_mm`. Triangles are uint32.
    Distances are uint8, 255 at `limit_mm` and beyond.
    """
    local = mesh.vertices - origin_mm
    low = local.min(axis=0)
    step = max(float((local.max(axis=0) - low).max()) / 65535, 1e-6)
    distances = (np.clip(mesh.distances_mm / limit_mm, 0, 1) * 255).round()
    arrays = {
        "vertices": ((local - low) / step).round().astype("<u2"),
        "triangles": mesh.triangles.astype("<u4"),
        "distances": distances.astype("u1"),
    }
    texts = {name: base64.b64encode(array.tobytes()).decode("ascii") for name, array in arrays.items()}
    return {"low_mm": low.round(4).tolist(), "step_mm": step, **texts}


def view_axes() -> Floats:
    """(3, 3): the directions, in RAS, that point right, up and at the viewer."""
    flat = np.cos(_ELEVATION)
    toward = np.array([np.sin(_AZIMUTH) * flat, np.cos(_AZIMUTH) * flat, np.sin(_ELEVATION)])
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
    """Draw meshes in orthographic projection, shaded, with a depth buffer.

    Args:
        meshes: Each with the colours of its vertices, (n, 3) in [0, 1], or with one colour (3,).
        centre, half_width_mm: See `bounds`.

    Returns:
        (size, size, 3) uint8 on white.
    """
    wide = size * _OVERSAMPLING
    pixels_per_mm = wide / (2 * half_width_mm)
    canvas = np.ones((wide * wide, 3))
    samples = [_samples(mesh, colours, centre, pixels_per_mm, wide) for mesh, colours in meshes]
    if samples:
        pixels, depths, colours = (np.concatenate(parts) for parts in zip(*samples, strict=True))
        order = np.argsort(depths, kind="stable")  # the nearest is written last and stays
        canvas[pixels[order]] = colours[order]
    mean: Floats = canvas.reshape(size, _OVERSAMPLING, size, _OVERSAMPLING, 3).mean(axis=(1, 3))
    return (mean * 255).round().astype(np.uint8)


def _samples(
    mesh: Mesh, colours: NDArray[np.floating], centre: Floats, pixels_per_mm: float, wide: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Points all over the mesh, closer than pixels: the pixel of each, its depth and its shaded colour."""
    seen = (mesh.vertices @ view_axes().T - centre) * [pixels_per_mm, -pixels_per_mm, pixels_per_mm]
    seen[:, :2] += wide / 2
    light = _AMBIENT + (1 - _AMBIENT) * np.abs(_normals(mesh) @ view_axes()[2])
    shaded = np.broadcast_to(colours, (len(seen), 3)) * light[:, None]
    values = np.concatenate([seen, shaded], axis=1).astype(np.float32)[mesh.triangles]  # (m, 3 corners, 6)
    # Only triangles that show their outside: the others are behind them, since surfaces are closed. Rows run down, so
    # that counter-clockwise is negative.
    first, second = values[:, 1, :2] - values[:, 0, :2], values[:, 2, :2] - values[:, 0, :2]
    values = values[first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] < 0]
    edges = np.abs(values[:, :, :2] - np.roll(values[:, :, :2], 1, axis=1)).max(axis=(1, 2))
    steps = np.maximum(1, np.ceil(edges * _SAMPLES_A_PIXEL)).astype(int)
    points = [np.empty((0, 6), dtype=np.float32)]
    for count in np.unique(steps).tolist():
        points.append((_barycentric(count) @ values[steps == count]).reshape(-1, 6))
    samples = np.concatenate(points)
    columns, rows = np.floor(samples[:, :2]).astype(np.int64).T
    inside = (columns >= 0) & (columns < wide) & (rows >= 0) & (rows < wide)
    return (rows * wide + columns)[inside], samples[inside, 2], samples[inside, 3:]


def _barycentric(steps: int) -> NDArray[np.float32]:
    """(s, 3) weights of the corners at all points of a triangle whose edges are cut into `steps`."""
    i, j = np.meshgrid(np.arange(steps + 1), np.arange(steps + 1), indexing="ij")
    inside = i + j <= steps
    i, j = i[inside], j[inside]
    return (np.stack([i, j, steps - i - j], axis=1) / steps).astype(np.float32)


def _normals(mesh: Mesh) -> Floats:
    """(n, 3) mean directions of the triangles at each vertex, by area."""
    corners = mesh.vertices[mesh.triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(mesh.vertices)
    for corner in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(mesh.triangles[:, corner], faces[:, axis], minlength=len(normals))
    unit: Floats = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return unit
