"""The page of a run, or of several: one HTML file that opens without internet; and figures for a paper.

python report.py runs/001-paper                              writes its report.html again
python report.py "Ours=runs/a,runs/b" "U-Net=runs/c,runs/d"  a page that compares rows of runs, compared/report.html
python report.py ROW [ROW...] --figure DIR                   qualitative grid and box plots as PDF and PNG
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

import cli
from experiments.given_rows import parse_rows, refuse_run
from reporting.comparison import write_comparison
from reporting.paper import write_figures
from reporting.run_page import write_page
from reporting.segmentation import run_config, segment_run
from utils import InputError, user_errors


@dataclass(frozen=True)
class Options:
    """Write the page of a run again, a page that compares several, or figures for a paper."""

    rows: tyro.conf.Positional[tuple[str, ...]]
    """Run folders of main.py or evaluate.py, or rows of them: "NAME=folder,folder" for folds and seeds."""
    against: str | None = None
    """The row that the others are compared with; otherwise the first."""
    figure: Path | None = None
    """Write figures for a paper to this folder, and no page."""
    out: Path = Path("compared")
    """Folder for the page of several runs."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(options: Options) -> None:
    """Write what the options ask for, and name it."""
    rows = parse_rows(options.rows)
    if not rows:
        raise InputError("no runs; name run folders of main.py or evaluate.py")
    if options.figure:
        written = write_figures(rows, options.figure, options.device, options.against)
    elif options.against or len(rows) > 1 or len(rows[0].folders) > 1:
        refuse_run(options.out)
        written = [write_comparison(rows, options.out, options.against)]
    else:
        written = [write_again(rows[0].folders[0], options.device)]
    print(f"Written: {', '.join(map(str, written))}")


def write_again(folder: Path, device: str) -> Path:
    """The page of a run, with its slices where they can still be segmented."""
    if not (folder / "evaluation.json").exists():
        run_config(folder)
    try:
        segmented, model = segment_run(folder, device)
    except InputError as error:
        print(f"note: no slices in the page: {error}")
        segmented = model = None
    return write_page(folder, segmented, model)


if __name__ == "__main__":
    with user_errors():
        main(cli.parse(Options, __doc__))
