"""Augmentation: the paper's flips and rotation, of image and mask together, and stronger changes that it has not."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

from config import AugmentationConfig
from data.mirror import Mirror

# The largest; size and aspect are drawn evenly in their logarithm.
SIZE, ASPECT, SHEAR, SHIFT = 1.25, 1.25**0.4, 0.1, 0.1

Transform = Callable[[np.ndarray, Image.Resampling], np.ndarray]


def augment(
    image: np.ndarray,
    target: np.ndarray,
    options: AugmentationConfig,
    rng: np.random.Generator,
    mirror: Mirror | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Image float32 (C, H, W), bilinear; target uint8 (H, W), nearest; what comes from outside is 0 in both.

    A flip along the axis of `mirror` exchanges its classes. What stays as it is is returned itself, not as a copy.
    """
    for axis in (-2, -1):
        if rng.random() < options.flip_probability:
            image, target = np.flip(image, axis), np.flip(target, axis)
            if mirror is not None and axis == mirror.axis:
                target = mirror.exchanged[target]
    transform = draw_transform(options, rng)
    if transform is not None:
        image = np.stack([transform(channel, Image.Resampling.BILINEAR) for channel in image])
        target = transform(target, Image.Resampling.NEAREST)
    if options.intensity_probability:
        image = change_intensities(image, options.intensity_probability, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(target)


def draw_transform(options: AugmentationConfig, rng: np.random.Generator) -> Transform | None:
    """Rotation and affine change of a slice; None where it stays as it is."""
    angle = 0.0
    if rng.random() < options.rotation_probability:
        angle = rng.uniform(-options.rotation_degrees, options.rotation_degrees)
    if rng.random() < options.affine_probability:
        size, aspect = np.exp(rng.uniform(-1, 1, 2) * np.log([SIZE, ASPECT]))
        shear, shift = rng.uniform(-SHEAR, SHEAR), rng.uniform(-SHIFT, SHIFT, 2)
        return _affine(angle, size, aspect, shear, shift)
    return _rotation(angle) if angle != 0 else None


def _rotation(angle: float) -> Transform:
    def transform(array: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(array).rotate(angle, resampling))

    return transform


def _affine(angle: float, size: float, aspect: float, shear: float, shift: np.ndarray) -> Transform:
    """Position x (column, row) from the center takes the value at R S x + shift, R the rotation, S sizes and shear."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    sizes = np.diag([size * aspect, size / aspect])
    matrix = np.array([[cosine, -sine], [sine, cosine]]) @ sizes @ np.array([[1, shear], [0, 1]])

    def transform(array: np.ndarray, resampling: Image.Resampling) -> np.ndarray:
        sides = np.array(array.shape[::-1])
        offset = sides / 2 + shift * sides - matrix @ (sides / 2)
        data = (*matrix[0], offset[0], *matrix[1], offset[1])
        return np.asarray(Image.fromarray(array).transform(tuple(sides), Image.Transform.AFFINE, data, resampling))

    return transform


def change_intensities(image: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """Each change happens with this probability; the ranges are near nnU-Net's (Isensee et al., 2021)."""
    _, height, width = image.shape
    if rng.random() < probability:  # noise
        image = image + rng.normal(0, rng.uniform(0, 0.06), image.shape)
    if rng.random() < probability:  # blur
        sigma = rng.uniform(0.5, 1)
        image = ndimage.gaussian_filter(image, (0, sigma, sigma))
    if rng.random() < probability:  # brightness
        image = image * rng.uniform(0.75, 1.25)
    if rng.random() < probability:  # contrast about the mean of each channel
        mean = np.array([channel.mean() for channel in image])[:, None, None]
        image = (image - mean) * rng.uniform(0.75, 1.25) + mean
    if rng.random() < probability:  # low resolution
        zoom = rng.uniform(0.5, 1)
        image = np.stack([_coarsen(channel, zoom) for channel in image])
    if rng.random() < probability:  # bias field of the coil
        rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
        a, b, c, d, e = rng.uniform(-0.3, 0.3, 5)
        image = image * np.exp(a * rows + b * columns + c * rows**2 + d * columns**2 + e * rows * columns)
    image = image.clip(0, 1)
    if rng.random() < probability:  # gamma
        image = image ** rng.uniform(0.7, 1.5)
    return image.astype(np.float32)


def _coarsen(channel: np.ndarray, zoom: float) -> np.ndarray:
    """(H, W) at a lower resolution, and back at its size."""
    height, width = channel.shape
    small = max(1, round(width * zoom)), max(1, round(height * zoom))
    picture = Image.fromarray(channel.astype(np.float32)).resize(small, Image.Resampling.NEAREST)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
