"""The page of a run, or of several: one HTML file that needs no network; and figures for a paper.

python report.py runs/001-paper                        writes its report.html again
python report.py runs/001-paper runs/002-paper         a page that compares runs, compared/report.html
python report.py RUN [RUN...] --figure DIR             qualitative grid and box plots as PDF and PNG
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from reporting.comparison import write_comparison
from reporting.paper import write_figures
from reporting.run_page import write_page
from reporting.segmentation import run_config, segment_run
from utils import InputError, user_errors


@dataclass(frozen=True)
class Options:
    """Write the page of a run again, a page that compares several, or figures for a paper."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders. The first of several is what the others are compared with."""
    figure: Path | None = None
    """Write figures for a paper to this folder, and no page."""
    out: Path = Path("compared")
    """Folder for the page of several runs."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def main(options: Options) -> None:
    """Write what the options ask for, and name it."""
    if not options.runs:
        raise InputError("no runs; name run folders of main.py")
    if options.figure:
        written = write_figures(options.runs, options.figure, options.device)
    elif len(options.runs) > 1:
        written = [write_comparison(options.runs, options.out)]
    else:
        written = [write_again(options.runs[0], options.device)]
    print(f"Written: {', '.join(map(str, written))}")


def write_again(folder: Path, device: str) -> Path:
    """The page of a run, with its slices where they can still be segmented."""
    run_config(folder)
    try:
        segmented, model = segment_run(folder, device)
    except InputError as error:
        print(f"note: no slices in the page: {error}")
        segmented = model = None
    return write_page(folder, segmented, model)


if __name__ == "__main__":
    with user_errors():
        main(tyro.cli(Options, description=Options.__doc__, use_underscores=True))
