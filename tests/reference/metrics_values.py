"""Surface metrics of small masks by other libraries, so that ours can be checked without installing those.

`python tests/reference/metrics_values.py` writes `metrics.json` with the libraries' versions; it needs `monai` and `medpy`.
MONAI: compute_hausdorff_distance, compute_surface_dice (use_subvoxels=False); float32. medpy: assd, hd95; float64.
"""

import base64
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import ndimage

SHAPES = [(1, 7, 9), (5, 6, 7), (8, 12, 10), (10, 11)]
SPACINGS = [(1.0, 1.0, 1.0), (5.5, 1.62, 1.62), (0.7, 3.1, 1.3), (2.0, 0.5, 0.5)]
TOLERANCES = [1.0, 1.7, 2.0, 4.3]


def pack(mask: np.ndarray) -> str:
    """A mask's bits as text."""
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def draw(kind: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A mask: one voxel, noise, smooth blobs, or a solid box at the border."""
    mask = np.zeros(shape, bool)
    if kind == "voxel":
        mask[tuple(rng.integers(n) for n in shape)] = True
    elif kind == "noise":
        mask = rng.random(shape) < 0.3
    elif kind == "blobs":
        mask = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5) > 0
    else:
        mask[tuple(slice(0, rng.integers(1, n + 1)) for n in shape)] = True
    return mask if mask.any() else draw("voxel", shape, rng)


def monai_values(a: np.ndarray, b: np.ndarray, spacing: list[float], tolerance: float) -> dict[str, float]:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    pair = {"y_pred": torch.from_numpy(a)[None, None].float(), "y": torch.from_numpy(b)[None, None].float()}
    options = {"include_background": True, "spacing": spacing}
    return {
        "hd95": compute_hausdorff_distance(**pair, percentile=95, **options).item(),
        "hd100": compute_hausdorff_distance(**pair, **options).item(),
        "nsd": compute_surface_dice(**pair, class_thresholds=[tolerance], **options).item(),
    }


def medpy_values(a: np.ndarray, b: np.ndarray, spacing: list[float]) -> dict[str, float]:
    from medpy.metric import binary

    return {"msd": float(binary.assd(a, b, spacing)), "hd95_pooled": float(binary.hd95(a, b, spacing))}


def main() -> None:
    rng = np.random.default_rng(0)
    cases = []
    for kinds in [("voxel", "voxel"), ("voxel", "blobs"), ("noise", "noise"), ("blobs", "blobs"), ("box", "blobs"), ("box", "box")]:
        for shape in SHAPES:
            for spacing, tolerance in zip(SPACINGS, TOLERANCES):
                spacing = list(spacing[-len(shape) :])
                a, b = (draw(kind, shape, rng) for kind in kinds)
                name = f"{'-'.join(kinds)} {'x'.join(map(str, shape))} {spacing}"
                case = {"name": name, "shape": shape, "spacing": spacing, "tolerance": tolerance, "masks": [pack(a), pack(b)]}
                case |= {"monai": monai_values(a, b, spacing, tolerance), "medpy": medpy_values(a, b, spacing)}
                cases.append(case)
    versions = {name: version(name) for name in ("monai", "medpy", "torch", "numpy", "scipy")}
    lines = ",\n".join(json.dumps(case) for case in cases)
    text = f'{{"versions": {json.dumps(versions)},\n"cases": [\n{lines}\n]}}\n'
    (Path(__file__).parent / "metrics.json").write_text(text)


if __name__ == "__main__":
    main()
