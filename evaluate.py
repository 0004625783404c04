"""Score segmentations of any origin: label volumes beside their truth, as main.py scores its test subjects.

python evaluate.py PREDICTIONS labelsTs --out runs/nnunet --labels nnUNet_raw/Dataset001/dataset.json
python evaluate.py runs/001-paper/predictions DIR/test --out runs/again
python evaluate.py PREDICTIONS TRUTH --out runs/theirs --names "liver,spleen" --truth_names "{subject}_seg.nii.gz"
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path

import tyro
from tqdm import tqdm

from experiments.results import COST
from inference.evaluation import Evaluation, Sources
from metrics import format_table, summarize
from reporting.figures import harmless
from reporting.run_page import write_page
from reporting.segmentation import scored
from training.environment import environment
from training.scores import score_volume, write_scores
from utils import InputError, make_folder, printable, some, user_errors, write_json

WRITTEN = ("evaluation.json", "test.csv", "test.json", "report.html")
SHOWN = 2**28  # voxels of the subjects that are read again for the page, the worst first; it never holds as many


@dataclass(frozen=True)
class Options:
    """Score label volumes: NIfTI files, PNG slices and masks, DICOM series and SEG objects."""

    predictions: tyro.conf.Positional[Path]
    """Folder with a segmentation for each subject, or one file."""
    truth: tyro.conf.Positional[Path]
    """Folder with a truth for each subject, such as DIR/test, or one file; its grid counts."""
    out: Path
    """Run folder for the scores: a new one, or that of an earlier evaluation."""
    labels: Path | None = None
    """dataset.json that says the classes: ours, the Decathlon's or nnU-Net's; otherwise the one beside the truth."""
    names: str = ""
    """Names of the classes instead, separated by commas, without the background."""
    values: str = ""
    """Values of these classes, separated by commas; otherwise 1, 2, ..."""
    images: Path | None = None
    """Folder with the images, for the page and figures; otherwise those of DIR/test, or none."""
    prediction_names: str = ""
    """Pattern of files such as "{subject}_pred.nii.gz"; otherwise files are called as the subjects, with any ending."""
    truth_names: str = ""
    """The same for the truth."""
    image_names: str = ""
    """The same for the images, such as "{subject}_0000.nii.gz"."""


def main(options: Options) -> None:
    """Score all subjects, then write the run folder."""
    sources = read_sources(options)
    check_out(options.out, sources)
    evaluation = Evaluation(sources)
    make_folder(options.out)
    rows, flat, dice, voxels, how = [], [], {}, {}, {}
    for subject in tqdm(evaluation.subjects(), "score", leave=False, disable=None):
        compared = evaluation.compare(subject)
        of_subject = score_volume(compared.volume, compared.geometry, evaluation.labels, evaluation.groups)
        rows += of_subject
        dice[subject] = summarize(of_subject)["overall"]["dsc"]["mean"]
        flat.append(len(compared.volume.target) == 1 and compared.geometry.spacing is None)
        voxels[subject] = compared.volume.target.size
        how.setdefault(compared.how, []).append(subject)
    for kind, text in (
        ("resampled", "resampled to the grid of the truth, to the nearest voxel"),
        ("cut", "with voxels outside of the slices of the truth, which do not count"),
    ):
        if kind in how:
            print(printable(f"note: {len(how[kind])} of {len(flat)} segmentations {text}: {some(how[kind])}"))
    (options.out / "test.json").unlink(missing_ok=True)  # which is the mark of a finished run
    write_json(options.out / "evaluation.json", evaluation.sources.to_dict())
    more = {"per_image": all(flat)} | dict.fromkeys([*COST, "best_epoch"]) | {"environment": environment()}
    summary = write_scores(options.out, rows, evaluation.labels, more)
    with harmless(options.out / "report.html"):
        write_page(options.out, scored(evaluation, worst(dice, voxels)))
    scored_in = "images" if summary["per_image"] else "subjects in 3D"
    print(f"{len(flat)} {scored_in}, mean ± std\n\n{format_table(summary)}")
    print(f"\nEverything is in {options.out}:\nreport.html, test.csv, test.json, evaluation.json")


def worst(dice: dict[str, float], voxels: dict[str, int]) -> list[str]:
    """The subjects with the lowest mean Dice, as many as have SHOWN voxels together, but one at least."""
    chosen, room = [], SHOWN
    for subject in sorted(dice, key=lambda subject: math.inf if math.isnan(dice[subject]) else dice[subject]):
        room -= voxels[subject]
        if chosen and room < 0:
            break
        chosen.append(subject)
    return chosen


def read_sources(options: Options) -> Sources:
    """What is compared with what. Raises InputError for options that do not go together."""
    names = tuple(part.strip() for part in options.names.split(",")) if options.names else ()
    values = tuple(part.strip() for part in options.values.split(",")) if options.values else ()
    if options.labels and names:
        raise InputError("--names: both names and --labels say the classes; give one of them")
    if len(set(names)) < len(names) or "" in names:
        raise InputError(f"--names {options.names}: must be names that differ; give one for each class")
    if values and len(values) != len(names):
        raise InputError(f"--values: {len(values)} values for {len(names)} --names; give one for each")
    if not all(value.isascii() and value.isdigit() and len(value) < 6 for value in values):
        raise InputError(f"--values {options.values}: must be whole numbers, such as 1,4")
    for flag in ("predictions", "truth", "images", "labels"):
        path = getattr(options, flag)
        if path is not None and not path.exists():
            raise InputError(f"{path}: no such file or folder; correct the name")
    given = {field.name: getattr(options, field.name) for field in fields(Sources)}
    return Sources(**given | {"names": names, "values": tuple(map(int, values))})


def check_out(out: Path, sources: Sources) -> None:
    """Raises InputError for a folder that holds anything but an earlier evaluation, or lies in what is read."""
    for source in filter(None, (sources.predictions, sources.truth, sources.images)):
        folder = Path(os.path.realpath(out))  # Path.resolve fails where links lead in a circle
        if Path(os.path.realpath(source)) in (folder, *folder.parents):
            raise InputError(f"--out {out}: lies in {source}, which is only read; choose another folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; choose another folder")
    held = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    others = sorted(set(held) - set(WRITTEN))
    if others or (held and "evaluation.json" not in held):
        shown = (others or held)[0]
        raise InputError(f"--out {out}: holds {shown}, and is no earlier evaluation; choose another folder")


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Options, description=Options.__doc__, use_underscores=True))
