"""How long preparation takes: `python -m benchmarks.prepare [--subjects 100]`, on generated scans of CHAOS's size."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage


def write_scans(folder: Path, subjects: int) -> None:
    """Smooth 16-bit volumes of 256 x 256 x 36 voxels with four classes, as (image, label) pairs."""
    rng = np.random.default_rng(0)
    base = ndimage.gaussian_filter(rng.normal(size=(36, 256, 256)), (2, 12, 12))
    label = np.digitize(base, np.quantile(base, [0.6, 0.7, 0.8, 0.9])).astype(np.uint8)
    for subject in range(subjects):
        image = (1000 * (base / base.std() + 4) + rng.normal(0, 60, base.shape)).clip(0).astype(np.int16)
        for kind, array in (("image", image), ("label", label)):
            scan = sitk.GetImageFromArray(array)
            scan.SetSpacing((1.5, 1.5, 5.5))
            sitk.WriteImage(scan, folder / f"{kind}_{subject}.nii.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", type=int, default=100)
    subjects = parser.parse_args().subjects
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scans(folder, subjects)
        command = [sys.executable, "prepare.py", "nifti", name, "--out", str(folder / "out"), "--folds", "5"]
        began = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        seconds = time.monotonic() - began
    print(f"{subjects} subjects of 256 x 256 x 36: {seconds:.1f} s on {os.cpu_count()} cores, with check and summary")


if __name__ == "__main__":
    main()
