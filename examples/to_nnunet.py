"""A data set of slices as nnU-Net's raw data, so that nnU-Net trains on the same slices and folds.

python -m examples.to_nnunet DIR nnUNet_raw/Dataset001_NAME [SPLIT_FILE ...]

Each subject becomes volumes of its images and of its class indices, on the grid of its slices. `splits_final.json`,
which nnU-Net takes in nnUNet_preprocessed/Dataset001_NAME, has a fold for each split file of main.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from data.folder import DataFolder, open_data
from data.splits import read_split
from data.volumes import assemble, to_scan
from utils import IGNORED, InputError, note, user_errors, write_json


def main(data: Path, out: Path, split_files: Sequence[Path]) -> None:
    """Write the raw data. Raises InputError where `out` exists, or the data set is none."""
    if out.exists():
        raise InputError(f"{out}: exists; choose another folder, or remove it")
    splits = [read_split(path) for path in split_files]
    folder = open_data(data)
    for name in ("imagesTr", "labelsTr"):
        (out / name).mkdir(parents=True)
    subjects = [subject for split in folder.splits for subject in write_split(folder, split, out)]
    names = [*folder.labels.names, *(["ignore"] if folder.labels.ignore else [])]
    channels = folder.channel_names or [f"channel {k}" for k in range(folder.channels)]
    described = {
        "channel_names": {str(k): name for k, name in enumerate(channels)},
        "labels": {name: k for k, name in enumerate(names)},
        "numTraining": len(subjects),
        "file_ending": ".nii.gz",
    }
    write_json(out / "dataset.json", described)
    write_json(out / "splits_final.json", [{"train": split["train"], "val": split["val"]} for split in splits])
    spacings = [folder.geometry[subject].spacing for subject in subjects]
    if any(spacing and spacing[2] < max(spacing[:2]) for spacing in spacings):
        # nnU-Net's 2d takes the planes across the largest spacing, whatever the slices are.
        note(data, "slices closer than their pixels: nnU-Net's 2d needs its plan as docs/evaluation.md says for them")


def write_split(folder: DataFolder, split: str, out: Path) -> list[str]:
    """Write the subjects of a split; return their names."""
    dataset = folder.dataset(split)
    ignored = len(folder.labels.names)
    for subject, indices in dataset.subjects().items():
        slices = [dataset[index] for index in indices]
        images = np.stack([image.numpy() for image, _ in slices])
        targets = np.stack([target.numpy() for _, target in slices])
        targets = np.where(targets == IGNORED, ignored, targets).astype(np.uint8)
        volumes = {out / "labelsTr" / f"{subject}.nii.gz": targets}
        for k in range(folder.channels):
            volumes[out / "imagesTr" / f"{subject}_{k:04d}.nii.gz"] = images[:, k]
        geometry = replace(folder.geometry[subject], original=None, orientation=None)  # of the slices
        for path, volume in volumes.items():
            numbers = [dataset.slices[index].number for index in indices]
            sitk.WriteImage(to_scan(assemble(numbers, list(volume)), geometry), path)
    return list(dataset.subjects())


if __name__ == "__main__":
    with user_errors():
        if len(sys.argv) < 3:
            raise InputError("give DIR and nnUNet_raw/DatasetNNN_NAME, and split files if there are any")
        data, out, *split_files = map(Path, sys.argv[1:])
        main(data, out, split_files)
