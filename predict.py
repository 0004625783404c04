"""Segment new scans with a trained network, in the scans' own geometry.

python predict.py runs/001-paper/best.pt scan.nii.gz dicom_folder --out segmentations
python predict.py fold1/best.pt,fold2/best.pt DIR/test --out segmentations --tta
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from inference.networks import Ensemble, load_network
from inference.results import Segmentation, measure, on_own_grid, score, write_probabilities, write_segmentation
from inference.scans import Scan, read_scans, scan_names
from metrics import format_table, summarize
from reporting.figures import save_montage
from training.device import Machine, choose_dtype, select_device
from utils import InputError, make_folder, user_errors, write_csv


@dataclass(frozen=True)
class Options:
    """Segment scans: NIfTI files, DICOM folders, folders of PNG slices, or a split of a data set."""

    checkpoint: tyro.conf.Positional[str]
    """best.pt of a run; several, separated by commas, are averaged (the folds of one data set)."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Scans. The channels of a scan in several files are separated by commas."""
    out: Path
    """Folder for the segmentations; files of the same name in it are replaced."""
    tta: bool = False
    """Average over flips of the slices."""
    batch: int = 8
    """Slices in a forward pass; changes speed and memory."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dicom: bool = False
    """Also write segmentations of DICOM folders as DICOM series."""
    probabilities: bool = False
    """Also write the probability of each class, as a 4-D NIfTI."""
    truth: tuple[Path, ...] = ()
    """Label volumes, or GT folders of PNG masks, in the order of the scans: also score."""


def main(options: Options) -> None:
    """Segment, measure and score scan after scan; what is done is kept when a later one is bad."""
    check(options)
    ensemble = load_ensemble(options)
    make_folder(options.out)
    volumes, scores, done = [], [], set()
    names = scan_names(options.inputs)
    for position, source in enumerate(options.inputs):
        for scan in read_scans(source, names[position], ensemble):
            if scan.name in done:
                raise InputError(f"{source}: a second scan called {scan.name}; segment it into another --out")
            done.add(scan.name)
            segmentation = segment(options, scan, ensemble)
            volumes += measure(segmentation)
            print(f"{scan.name}: {options.out / f'{scan.name}.nii.gz'}", flush=True)
            write_csv(options.out / "volumes.csv", volumes)
            if options.truth:
                scores += score(segmentation, options.truth[position])
                write_csv(options.out / "scores.csv", scores)
    if scores:
        print(format_table(summarize(scores)))


def check(options: Options) -> None:
    """Raises InputError for options that cannot work.

    Among them is an --out with scans or truth in it: results have the scans' names and would replace them.
    """
    if options.batch < 1:
        raise InputError(f"--batch {options.batch}: must be at least 1")
    if not options.inputs:
        raise InputError("no scans to segment; name NIfTI files, DICOM folders or folders of slices")
    if options.truth and len(options.truth) != len(options.inputs):
        raise InputError(f"--truth: {len(options.truth)} for {len(options.inputs)} scans; give one for each")
    for path in options.truth:
        if not path.exists():
            raise InputError(f"--truth {path}: no such file or folder; correct the name")
    out = options.out.resolve()
    files = [Path(file) for source in options.inputs for file in source.split(",")]
    for path in (*files, *options.truth):
        folders = [path.resolve()] if path.is_dir() else [path.resolve().parent, path.parent.resolve()]
        if any(out in (folder, folder / "Img", folder / "GT") for folder in folders):
            raise InputError(f"--out {options.out}: holds {path}, which results could replace; choose another folder")


def load_ensemble(options: Options) -> Ensemble:
    """The networks of the checkpoints. Raises InputError where they are none, or cannot be averaged."""
    device = select_device(options.device)
    networks = [load_network(Path(path), device) for path in options.checkpoint.split(",")]
    machine = Machine(device, choose_dtype(networks[0].config.machine.amp, device), workers=0)
    ensemble = Ensemble(networks, machine, options.batch, options.tta)
    for network in networks:
        if options.tta and not network.config.augmentation.flip_probability:
            raise InputError(
                f"--tta: {network.path} was trained without flips, so they may exchange left and right; omit it"
            )
    return ensemble


def segment(options: Options, scan: Scan, ensemble: Ensemble) -> Segmentation:
    """Segment a scan, and write its segmentation, its picture, and its probabilities where they are wanted."""
    probabilities = ensemble.probabilities(scan.images)
    segmentation = on_own_grid(scan, probabilities, ensemble)
    of_slices = segmentation.slices[scan.positions]
    save_montage(options.out / f"{scan.name}.png", scan.images, of_slices, ensemble.labels.names)
    write_segmentation(options.out, segmentation, options.dicom)
    if options.probabilities:
        write_probabilities(options.out, scan, probabilities)
    return segmentation


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Options, description=Options.__doc__, use_underscores=True))
