"""The paper's tables: train every row on every fold, then put ours beside the paper's.

python reproduce.py III-chaos --data DIR                  every row of Table III's CHAOS half
python reproduce.py I --data DIR --folds 5 --epochs 100   on five folds of all subjects in DIR
python reproduce.py VIII                                  parameter counts, without any training
python reproduce.py compare runs/001-paper runs/002-paper the same table and tests for runs of your own
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from config import GROUP_OF, parse_config
from data.dataset import natural
from data.folder import Identity, open_data
from data.splits import Split, fold_split, random_splits, split_counts
from experiments.formats import (
    latex,
    markdown,
    parameters_latex,
    parameters_markdown,
    parameters_table,
    plain,
)
from experiments.launching import Run, check, run_all, submit_all
from experiments.results import Result, read_result
from experiments.rows import IDENTITY, ROWS
from experiments.tables import PAPER, Table
from metrics import BY_NAME
from models import build_model, check_network
from reporting.figures import harmless, save_boxes, save_curves
from training.checkpoint import content_of, load_checkpoint
from training.setup import open_data_of
from utils import (
    InputError,
    lock_folder,
    make_folder,
    read_json,
    unlock_folder,
    user_errors,
    write_csv,
    write_json,
    write_text,
)


@dataclass(frozen=True)
class Options:
    """A table of the paper; or "reproduce.py compare RUN RUN..." for runs of your own.

    Flags of main.py that are not listed here are handed to all rows (--preset quick, ...).
    """

    table: tyro.conf.Positional[Literal["I", "II", "III-chaos", "IV", "V", "VI", "VII", "VIII"]]
    """Table of the paper."""
    data: tuple[Path, ...] = ()
    """Prepared data set; or several, one for each fold."""
    out: Path = Path("reproduced")
    """Folder for runs, splits and tables. Tables share the runs of the rows that they share."""
    folds: int = 0
    """Split all subjects of --data anew into so many folds, each the test set once; 0: the split of its folders."""
    split: str = ""
    """TRAIN,VAL,TEST: split all subjects of --data at random into so many, such as 13,2,5."""
    repeats: int = 1
    """So many splits by --split, each with other test subjects."""
    split_seed: int = 0
    """Seed of --folds and --split."""
    only: str = ""
    """Rows, separated by commas; the others are left out."""
    jobs: int = 1
    """Trainings at the same time; they share the visible GPUs, or the cores."""
    slurm: str | None = None
    """Train as SLURM jobs, with these options of submitit: "timeout_min=1440 gpus_per_node=1 slurm_partition=gpu"."""


@dataclass(frozen=True)
class Fold:
    """A data set and how its subjects are split: by its folders (None), or by a split file."""

    name: str
    data: Path
    split_file: Path | None


def reproduce(options: Options, flags: list[str]) -> None:
    """Train what is not trained yet and write the table. Raises InputError at once for what cannot work."""
    if options.table == "VIII":
        return write_parameters(options.out)
    if not options.data:
        raise InputError("--data: name a prepared data set (prepare.py makes one), such as --data dataset")
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: must be at least 1")
    folder = options.out / f"table-{options.table}"
    make_folder(folder)
    lock_folder(options.out)
    runs = plan_runs(options, flags)
    to_go_on = [run for run in runs if check(run)]
    check_data(runs)
    for run in to_go_on:
        (run.folder / "test.json").unlink(missing_ok=True)  # no longer finished
    manifest = folder / "manifest.json"
    if options.slurm is None:
        run_all(runs, manifest, options.jobs)
    else:
        submit_all(runs, manifest, options.jobs, slurm_options(options.slurm))
    write_table(options.table, [run for run in runs if run.finished()], folder)
    unlock_folder(options.out)
    failed = [run for run in runs if not run.finished()]
    for run in failed:
        print(f"failed: {run.row}, {run.fold}: {run.error} ({run.folder})", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def plan_runs(options: Options, flags: list[str]) -> list[Run]:
    """Every row of the table on every fold. Raises InputError for flags that no network takes."""
    each = folds(options)
    runs = []
    for row in chosen_rows(options):
        for fold in each:
            folder = options.out / "runs" / slug(row) / fold.name
            run = Run(row, fold.name, folder, _flags(row, fold, flags))
            check_network(parse_config(run.flags).network)
            runs.append(run)
    return runs


def check_data(runs: list[Run]) -> None:
    """Raises InputError where a run was trained on other slices, labels or preparation than its data set has now."""
    data: dict[tuple[Path, Path | None], Identity] = {}
    for run in runs:
        path = run.folder / "best.pt"
        if not path.exists():
            continue
        config = parse_config(run.flags)
        key = config.data, config.split_file
        if key not in data:
            data[key] = open_data_of(config).identity()
        checkpoint = load_checkpoint(path)
        with content_of(path):
            trained_on = Identity.from_dict(checkpoint["data"])
        what = trained_on.difference(data[key])
        if what:
            raise InputError(f"{run.folder}: was trained on other {what} than {config.data} has; choose another --out")


def chosen_rows(options: Options) -> list[str]:
    """The rows of the table, or those of --only in the table's order."""
    rows = list(PAPER["tables"][options.table]["rows"])
    wanted = [name.strip() for name in options.only.split(",") if name.strip()] or rows
    for name in wanted:
        if name not in rows:
            raise InputError(f"--only {name}: no row of Table {options.table}; it has {', '.join(rows)}")
    return [row for row in rows if row in wanted]


def folds(options: Options) -> list[Fold]:
    """What each row is trained on. Writes the split files that it needs."""
    if options.folds and options.split:
        raise InputError("--folds and --split: choose one of the two")
    if options.folds < 0 or options.repeats < 1:
        raise InputError(f"--folds {options.folds}, --repeats {options.repeats}: must be at least 0 and 1")
    several = len(options.data) > 1
    found = []
    for number, data in enumerate(options.data, 1):
        slices = open_data(data).splits.values()  # any mistake in the data shows here, not in every run
        name = f"{number}-{data.resolve().name}" if several else data.resolve().name
        if options.folds or options.split:
            subjects = sorted({item.subject for split in slices for item in split}, key=natural)
            found += _split_folds(options, data, name, subjects)
        else:
            found.append(Fold(name, data, None))
    return found


def _split_folds(options: Options, data: Path, name: str, subjects: list[str]) -> list[Fold]:
    """The folds of a data set by --folds or --split, each with its split file. Raises InputError."""
    kind, splits = _splits(options, subjects)
    found = []
    for k, split in enumerate(splits, 1):
        of_fold = f"{name}-{kind}-{k}-of-{len(splits)}-seed-{options.split_seed}"
        path = options.out / "splits" / f"{of_fold}.json"
        if path.exists() and read_json(path) != split:
            raise InputError(f"{path}: {data} has other subjects now than it was split for; choose another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, split)
        found.append(Fold(of_fold, data, path))
    return found


def _splits(options: Options, subjects: list[str]) -> tuple[str, list[Split]]:
    """What kind of splits it is, for names, and the splits."""
    seed = options.split_seed
    if options.folds:
        return "fold", [fold_split(subjects, k, options.folds, seed) for k in range(1, options.folds + 1)]
    counts = split_counts(options.split)
    return f"split-{'-'.join(map(str, counts))}", random_splits(subjects, counts, options.repeats, seed)


def _flags(row: str, fold: Fold, flags: list[str]) -> list[str]:
    """The row's own flags come last, so that no flag for all rows changes what a row is."""
    split = ["--split_file", str(fold.split_file)] if fold.split_file else []
    return [*flags, "--data", str(fold.data), *split, *ROWS[row]]


def slug(name: str) -> str:
    """A row's name as a folder: "PAN (ResNet-34)" -> "pan-resnet-34"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def slurm_options(text: str) -> dict[str, Any]:
    """ "a=1 b=x" -> {"a": 1, "b": "x"}."""
    pairs = [part.partition("=") for part in text.split()]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise InputError(f'--slurm {text}: must be NAME=VALUE pairs, such as "timeout_min=1440 gpus_per_node=1"')
    return {name: int(value) if value.isdigit() else value for name, _, value in pairs}


def write_table(name: str, runs: list[Run], folder: Path) -> None:
    """Write table.md, table.csv, table.tex, boxes.png and curves.png of the finished runs, and print the first."""
    rows: dict[str, list[Path]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run.folder)
    if rows:
        _write(name, [read_result(row, folders) for row, folders in rows.items()], folder)


def _write(name: str, results: list[Result], folder: Path) -> None:
    if len({tuple(result.classes) for result in results}) > 1:
        raise InputError(f"{name}: the runs are of data sets with other classes and cannot share a table")
    table = Table(name, results)
    write_text(folder / "table.md", markdown(table))
    write_csv(folder / "table.csv", table.rows())
    write_text(folder / "table.tex", latex(table))
    values = {result.name: result.values for result in results}
    with harmless(folder / "boxes.png"):
        save_boxes(folder / "boxes.png", values, results[0].classes, BY_NAME[table.columns[0][1]])
    with harmless(folder / "curves.png"):
        save_curves(folder / "curves.png", {result.name: result.curves for result in results})
    print(f"\n{plain(table)}\n\nWritten to {folder}: table.md, table.csv, table.tex, boxes.png, curves.png")


def write_parameters(out: Path) -> None:
    """Table VIII: the parameters of every row in the paper's form, one channel and five classes."""
    counts = {}
    for row in PAPER["parameters"]:
        with torch.device("meta"):
            model = build_model(parse_config(["--channels", "1", "--classes", "5", *ROWS[row]]))
        counts[row] = sum(parameter.numel() for parameter in model.parameters())
    rows = parameters_table(counts)
    folder = out / "table-VIII"
    make_folder(folder)
    write_text(folder / "table.md", parameters_markdown(rows))
    write_csv(folder / "table.csv", rows)
    write_text(folder / "table.tex", parameters_latex(rows))
    print(f"{parameters_markdown(rows)}\nWritten to {folder}: table.md, table.csv, table.tex")


@dataclass(frozen=True)
class Compare:
    """The table and the tests for any runs."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders; the folds of one row separated by commas. The first is what the others are tested against."""
    out: Path = Path("compared")
    """Folder for the table."""


def compare(options: Compare) -> None:
    """Write the table of the runs of one's own."""
    if not options.runs:
        raise InputError("no runs to compare; name their folders, the reference first")
    groups = [[Path(name) for name in group.split(",")] for group in options.runs]
    results = [read_result(str(group[0]), group) for group in groups]
    make_folder(options.out)
    _write("Comparison", [*results[1:], results[0]], options.out)


def main(arguments: list[str]) -> None:
    """reproduce.py's command line."""
    if arguments[:1] == ["compare"]:
        return compare(tyro.cli(Compare, args=arguments[1:], prog="reproduce.py compare", use_underscores=True))
    options, rest = tyro.cli(Options, args=arguments, return_unknown_args=True, use_underscores=True)
    of_each = {"data", "out", "resume", "split_file", "model", "steps", *IDENTITY}
    own = GROUP_OF.keys() - of_each
    unknown = [flag for flag in rest if flag.startswith("--") and _field(flag) not in own]
    if unknown:
        raise InputError(f"{unknown[0]}: no flag of reproduce.py, and none of main.py that may be given to all rows")
    reproduce(options, rest)


def _field(flag: str) -> str:
    return flag.partition("=")[0].removeprefix("--").replace("-", "_").removeprefix("no_")


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
