"""Score segmentations of any origin (NIfTI, PNG masks, DICOM series and SEG objects) as main.py does its test subjects.

python evaluate.py PREDICTIONS labelsTs --out runs/nnunet --labels nnUNet_raw/Dataset001/dataset.json
python evaluate.py runs/001-paper/predictions DIR/test --out runs/again
python evaluate.py PREDICTIONS TRUTH --out runs/theirs --names "liver,spleen" --truth_names "{subject}_seg.nii.gz"
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from tqdm import tqdm

import cli
from experiments.results import COST
from inference.evaluation import Evaluation, Sources
from metrics import is_slice, summarize
from reporting.run_page import write_page
from reporting.score_table import format_heading, format_table
from reporting.segmentation import scored
from training.environment import environment
from training.scores import score_volume, write_scores
from utils import InputError, harmless, make_folder, printable, some, user_errors, write_json

WRITTEN = ("evaluation.json", "test.csv", "test.json", "report.html")
SHOWN = 2**28  # voxels of the subjects that are read again for the page, the worst first; it never holds as many
NOTES = {  # on how segmentations were compared
    "resampled": "resampled to the grid of the truth, to the nearest voxel",
    "cut": "with voxels outside of the slices of the truth, which do not count",
}


@dataclass(frozen=True)
class Options:
    """Score label volumes: NIfTI files, PNG slices and masks, DICOM series and SEG objects."""

    sources: tyro.conf.PositionalRequiredArgs[Sources]
    out: Path
    """Run folder for the scores: a new one, or that of an earlier evaluation."""


def main(options: Options) -> None:
    """Score all subjects, then write the run folder."""
    options.sources.check()
    check_out(options.out, options.sources)
    evaluation = Evaluation(options.sources)
    make_folder(options.out)
    subjects = evaluation.subjects()
    scores = {subject: score(evaluation, subject) for subject in tqdm(subjects, "score", leave=False, disable=None)}
    for how, text in NOTES.items():
        such = [subject for subject in subjects if scores[subject].how == how]
        if such:
            print(printable(f"note: {len(such)} of {len(subjects)} segmentations {text}: {some(such)}"))
    for stale in ("test.json", "report.html"):  # the first is the mark of a finished run
        (options.out / stale).unlink(missing_ok=True)
    write_json(options.out / "evaluation.json", evaluation.sources.to_dict())
    per_image = all(of_subject.is_slice for of_subject in scores.values())
    more = {"per_image": per_image} | dict.fromkeys([*COST, "best_epoch"]) | {"environment": environment()}
    rows = [row for of_subject in scores.values() for row in of_subject.rows]
    summary = write_scores(options.out, rows, evaluation.labels, more)
    with harmless(options.out / "report.html"):
        write_page(options.out, scored(evaluation, worst(scores)))
    print(f"{format_heading(summary)}\n\n{format_table(summary)}")
    print(f"\nEverything is in {options.out}:\nreport.html, test.csv, test.json, evaluation.json")


class Scores(NamedTuple):
    """What a subject has come to."""

    rows: list[dict[str, Any]]
    """Of test.csv."""
    is_slice: bool
    how: str
    """As `Compared.how`."""
    voxels: int


def score(evaluation: Evaluation, subject: str) -> Scores:
    """Score one subject."""
    compared = evaluation.compare(subject)
    volume, geometry = compared.volume, compared.geometry
    rows = score_volume(volume, geometry, evaluation.labels, evaluation.groups)
    return Scores(rows, is_slice(volume.target.shape), compared.how, volume.target.size)


def worst(scores: dict[str, Scores]) -> list[str]:
    """The subjects with the lowest mean Dice, as many as have SHOWN voxels together, but one at least."""
    dice = {subject: summarize(of_one.rows)["overall"]["dsc"]["mean"] for subject, of_one in scores.items()}
    chosen, room = [], SHOWN
    for subject in sorted(dice, key=lambda subject: math.inf if math.isnan(dice[subject]) else dice[subject]):
        room -= scores[subject].voxels
        if chosen and room < 0:
            break
        chosen.append(subject)
    return chosen


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
        main(cli.parse(Options, __doc__))
