"""The paper's augmentation: flips and a rotation, of image and mask together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Augmentation:
    """Vertical flip, horizontal flip and rotation about the center, each drawn apart; angles in degrees."""

    flip_probability: float = 0.5
    rotation_probability: float = 0.5
    rotation_degrees: float = 30.0

    def __call__(
        self, image: np.ndarray, target: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Image float32 (C, H, W), bilinear; target uint8 (H, W), nearest; what comes from outside is 0 in both."""
        for axis in (-2, -1):
            if rng.random() < self.flip_probability:
                image, target = np.flip(image, axis), np.flip(target, axis)
        if rng.random() < self.rotation_probability:
            angle = rng.uniform(-self.rotation_degrees, self.rotation_degrees)
            image = np.stack([_rotate(channel, angle, Image.Resampling.BILINEAR) for channel in image])
            target = _rotate(target, angle, Image.Resampling.NEAREST)
        return np.ascontiguousarray(image), np.ascontiguousarray(target)


def _rotate(array: np.ndarray, angle: float, resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(array).rotate(angle, resampling))
