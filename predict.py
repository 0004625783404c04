"""Segment scans (NIfTI, DICOM folders, PNG slices, splits of a data set) in their own geometry, and pictures.

python predict.py runs/001-paper/best.pt scan.nii.gz dicom_folder --out segmentations
python predict.py fold1/best.pt,fold2/best.pt DIR/test --out segmentations --tta
python predict.py runs/001-paper/best.pt photo.jpg pictures --out segmentations
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

import cli
from data.sources.dicom_seg_writer import check_writable
from data.viewers import check_viewer_labels, write_viewer_labels
from inference.output import OPTIONAL, OutputFolder, file_of
from inference.results import Segmentation, measure, write_dicom, write_dicom_series, write_probabilities
from inference.scans import Scan, files_of, scan_names
from inference.segmenter import Segmenter
from inference.truth import check_truth, read_truth, score
from metrics import summarize
from reporting.figures import save_montage
from reporting.score_table import format_table
from utils import InputError, errors_begin, harmless, printable, user_errors


@dataclass(frozen=True)
class Options:
    """Segment scans: NIfTI files, DICOM folders, folders of PNG slices, splits of a data set; or pictures."""

    checkpoint: tyro.conf.Positional[str]
    """best.pt of a run; several, separated by commas, are averaged (the folds of one data set)."""
    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Scans, pictures (PNG, JPEG, BMP), and folders of them. The channels of one in several files are separated by
    commas."""
    out: Path
    """Folder for the segmentations; those of the same scan in it are replaced."""
    tta: bool = False
    """Average over flips of the slices."""
    batch: int = 8
    """Slices in a forward pass; changes speed and memory."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dicom: bool = False
    """Also write segmentations of DICOM folders as DICOM segmentations (SEG); needs highdicom."""
    dicom_series: bool = False
    """Also write segmentations of DICOM folders as ordinary DICOM series."""
    probabilities: bool = False
    """Also write the probability of each class, as a 4-D NIfTI."""
    truth: tuple[Path, ...] = ()
    """Label volumes, GT folders of PNG masks or splits with them, or masks of pictures, in the order of the scans: also
    score."""


def main(options: Options) -> None:
    """Segment, measure and score scan after scan; what is done is kept when a later one is bad."""
    check(options)
    segmenter = Segmenter(files_of(options.checkpoint), tta=options.tta, batch=options.batch, device=options.device)
    channels = segmenter.ensemble.identity.channels
    if len(channels) > 1:
        print(f"channels, in the order of the files of a scan: {', '.join(channels)}")
    check_truth(options.truth, segmenter.labels)
    if options.dicom:
        with errors_begin("--dicom"):
            check_writable(segmenter.labels.names)
    output = OutputFolder(options.out, {kind for kind in OPTIONAL if getattr(options, kind)})
    scores, are_pictures, failures = [], [], []
    names = scan_names(options.inputs)
    truths = options.truth or [None] * len(names)
    for source, name, truth in zip(options.inputs, names, truths, strict=True):
        for scan in scans_of(source, name, truth, segmenter):
            preparation = segmenter.ensemble.identity.preparation
            expected = None if truth is None else read_truth(truth, scan, segmenter.labels, preparation)
            output.claim(scan.name, scan.is_picture, scan.files[0])
            if not scan.is_picture:
                check_viewer_labels(options.out, segmenter.labels)
                write_viewer_labels(options.out, segmenter.labels)
            segmentation = segmenter.segment(scan)
            write(options, segmentation, output)
            if expected is not None:
                rows = score(segmentation, expected)
                output.replace_rows("scores.csv", scan.name, rows)
                scores += rows
                are_pictures.append(scan.is_picture)
            failures += write_as_dicom(options, segmentation)
    if scores:
        print(format_table(summarize(scores) | {"per_image": all(are_pictures)}))
    if failures:
        raise SystemExit(2 if all(isinstance(error, InputError) for error in failures) else 1)


def scans_of(source: str, name: str, truth: Path | None, segmenter: Segmenter) -> Iterator[Scan]:
    """The scans of an input. Raises InputError where there are several for one label volume."""
    scans = segmenter.scans(source, name)
    if truth is not None and not truth.is_dir():
        scans = list(itertools.islice(scans, 2))
        if len(scans) > 1:
            raise InputError(f"--truth {truth}: is one file, and {source} holds several subjects; give a folder")
    return iter(scans)


def check(options: Options) -> None:
    """Raises InputError for options that cannot work.

    Among them is an --out with scans or truth in it: results have the scans' names and would replace them.
    """
    if not options.inputs:
        raise InputError("no scans to segment; name NIfTI files, DICOM folders or folders of slices")
    if options.truth and len(options.truth) != len(options.inputs):
        raise InputError(f"--truth: {len(options.truth)} for {len(options.inputs)} scans; give one for each")
    for path in options.truth:
        if not path.exists():
            raise InputError(f"--truth {path}: no such file or folder; correct the name")
    out = _real(options.out)
    files = [file for source in options.inputs for file in files_of(source)]
    for path in (*files, *options.truth):
        folders = [_real(path)] if path.is_dir() else [_real(path).parent, _real(path.parent)]
        if any(out in (folder, folder / "Img", folder / "GT") for folder in folders):
            raise InputError(f"--out {options.out}: holds {path}, which results could replace; choose another folder")
    for name in scan_names(options.inputs) if options.dicom_series else ():
        series = _real(options.out / file_of("dicom_series", name))
        for path in (*files, *options.truth):
            if series in (_real(path), *_real(path).parents):
                raise InputError(f"--out {options.out}: {series.name} would replace {path}; choose another folder")


def _real(path: Path) -> Path:
    """The path without links; Path.resolve fails where links lead in a circle."""
    return Path(os.path.realpath(path))


def write(options: Options, segmentation: Segmentation, output: OutputFolder) -> None:
    """Write a segmentation, its volumes, its picture, and its probabilities if wanted."""
    scan = segmentation.scan
    path = options.out / file_of("segmentation", scan.name, scan.is_picture)
    segmentation.save(path)
    output.replace_rows("volumes.csv", scan.name, measure(segmentation))
    output.replace_rows("scores.csv", scan.name, [])  # of an earlier segmentation
    if options.probabilities:
        write_probabilities(options.out, segmentation)
    overlay = options.out / file_of("overlay", scan.name)
    with harmless(overlay):
        slices, names = segmentation.slices[scan.positions], segmentation.labels.names
        save_montage(overlay, scan.shown, slices, names, scan.geometry.pixel_aspect)
    print(f"{scan.name}: {path}", flush=True)


def write_as_dicom(options: Options, segmentation: Segmentation) -> list[Exception]:
    """Write what is wanted of a scan that was a DICOM series. What goes wrong is said in a line each, and returned."""
    failures, scan = [], segmentation.scan
    if scan.series is None and (options.dicom or options.dicom_series):
        print(printable(f"note: {scan.name}: is no DICOM folder, so its segmentation is not written as DICOM"))
        return failures
    for kind, write_kind in (("dicom", write_dicom), ("dicom_series", write_dicom_series)):
        try:
            if getattr(options, kind):
                write_kind(options.out, segmentation)
        except (InputError, OSError) as error:
            reason = error if isinstance(error, InputError) else f"{error.filename}: {error.strerror}"
            print(printable(f"error: {scan.name}: not written as DICOM: {reason}"), file=sys.stderr)
            failures.append(error)
    return failures


if __name__ == "__main__":
    with user_errors():
        main(cli.parse(Options, __doc__))
