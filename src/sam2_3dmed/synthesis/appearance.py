"""How a scanner might show structures: intensities, textures, partial volume, bias, noise, as in CT or MR."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sam2_3dmed.data.anatomy import Field, grain, smooth_field
from sam2_3dmed.synthesis.structures import Grid, Labels


def draw_image(rng: np.random.Generator, grid: Grid, labels: Labels, number: int) -> Field:
    """An image (D, H, W) float32 in [0, 1] of labels 0 to `number` - 1."""
    like_ct = rng.random() < 0.5
    means = _intensities(rng, number)
    image = means[labels]
    _add_textures(rng, grid, image, labels, number)
    # The edges of structures: the scanner's blur, and slices that share what lies between them.
    sigma = rng.uniform(0.3, 1.2)
    image = gaussian_filter(image, (rng.uniform(0, 0.4) + sigma / (2 * grid.thickness), sigma, sigma), truncate=3)
    if not like_ct:
        image *= np.exp(rng.uniform(0, 0.35) * smooth_field(rng, grid.shape, grid.knots(3)))
    return _rescaled(_with_noise(rng, image, like_ct), rng)


def _intensities(rng: np.random.Generator, number: int) -> NDArray[np.float32]:
    """The mean of each structure. Many share a few levels, as soft tissues do; 0 is dark, mostly."""
    levels = rng.uniform(0.1, 1, int(rng.integers(2, 7)))
    means = rng.choice(levels, number) + rng.normal(0, rng.uniform(0.02, 0.15), number)
    means[0] = rng.uniform(0, 0.15) if rng.random() < 0.8 else rng.uniform(0, 1)
    return means.astype(np.float32)


def _add_textures(rng: np.random.Generator, grid: Grid, image: Field, labels: Labels, number: int) -> None:
    """Add a fine and a coarse texture, each as strong in a structure as it draws."""
    for low, high in ((0.6, 1.5), (1.5, 5.0)):
        sigma = rng.uniform(low, high)
        strengths = (rng.uniform(0, 0.08) * rng.exponential(1, number)).astype(np.float32)
        image += strengths[labels] * grain(rng, grid.shape, (sigma / grid.thickness, sigma, sigma))


def _with_noise(rng: np.random.Generator, image: Field, like_ct: bool) -> Field:
    """Correlated noise for CT; for MR Rician noise, the magnitude of a complex signal."""
    strength = np.float32(rng.uniform(0, 0.08))
    sigma = rng.uniform(0.3, 0.9)
    noise = grain(rng, image.shape, (0, sigma, sigma))
    if like_ct:
        return image + strength * noise
    other = rng.standard_normal(image.shape, dtype=np.float32)
    return np.asarray(np.sqrt((image + strength * noise) ** 2 + (strength * other) ** 2))


def _rescaled(image: Field, rng: np.random.Generator) -> Field:
    """Cut to a window, as preprocessing does, to [0, 1]; inverted now and then, and with a gamma."""
    low, high = np.quantile(image[::2, ::2, ::2], (rng.uniform(0, 0.02), rng.uniform(0.98, 1)))
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1) ** np.float32(np.exp(rng.normal(0, 0.3)))
    return np.asarray(1 - image if rng.random() < 0.2 else image, dtype=np.float32)
