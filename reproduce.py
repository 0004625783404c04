"""The paper's tables: train every row on every fold, then put ours beside the paper's.

python reproduce.py III-chaos --data DIR                  every row of Table III's CHAOS half
python reproduce.py I --data DIR --folds 5 --epochs 100   on five folds of all subjects in DIR
python reproduce.py VIII                                  parameter counts, without any training
python reproduce.py I --data DIR --row "Mine: --model unet" --rows "nnU-Net=runs/nnunet"   with rows of your own
python reproduce.py compare "Mine=runs/a,runs/b" runs/c   the same table and tests for runs of your own

Flags of main.py that are not listed are handed to all rows (--preset quick, ...).
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

import cli
from config import GROUP_OF, parse_config
from data.folder import Identity
from experiments.folds import Fold, Splitting, folds
from experiments.formats import latex, markdown, parameters_latex, parameters_markdown, parameters_table, plain
from experiments.given_rows import parse_rows, refuse_run
from experiments.launching import Run, goes_on, run_all, submit_all
from experiments.results import merged_groups, read_result
from experiments.rows import OF_ROWS, OF_RUNS, ROWS, field_of, own_rows, slug
from experiments.tables import PAPER, Table
from models import build_model, check_network, count_parameters, own_class
from reporting.comparison import read_rows
from reporting.figures import save_boxes, save_curves
from training.checkpoint import content_of, load_checkpoint
from training.scores import tolerances_of
from training.setup import open_data_of
from utils import (
    InputError,
    errors_begin,
    harmless,
    lock_folder,
    make_folder,
    unlock_folder,
    user_errors,
    write_csv,
    write_json,
    write_text,
)

WRITTEN = ("table.md", "table.csv", "table.tex", "boxes.png", "curves.png")


@dataclass(frozen=True)
class Options:
    """A table of the paper."""

    table: tyro.conf.Positional[Literal["I", "II", "III-chaos", "IV", "V", "VI", "VII", "VIII"]]
    """Table of the paper."""
    splitting: Splitting = field(default_factory=Splitting)
    out: Path = Path("reproduced")
    """Folder for runs, splits and tables. Tables share the runs of the rows that they share."""
    seeds: str = ""
    """Train each row on each fold with each of these seeds, such as 0,1,2."""
    only: str = ""
    """Rows, separated by commas; the others are left out."""
    row: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A row of your own, trained as the others: "NAME: FLAGS", such as "Mine: --model unet --backbone resnet18"."""
    rows: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """Finished runs beside the table's rows: "NAME=folder,folder"."""
    against: str | None = None
    """The row that the others are tested against; by default MS-Dual-Guided, or the last where that is left out."""
    jobs: int | None = None
    """Trainings at the same time; they share the visible GPUs, or the cores. By default one; with --slurm all."""
    slurm: str | None = None
    """Train as SLURM jobs, with these options of submitit: "timeout_min=1440 gpus_per_node=1 slurm_partition=gpu"."""


def reproduce(options: Options, flags: list[str]) -> None:
    """Train what is not trained yet and write the table. Raises InputError at once for what cannot work."""
    if options.table == "VIII":
        return write_parameters(options.out)
    if not options.splitting.data:
        raise InputError("--data: name a prepared data set (prepare.py makes one), such as --data dataset")
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: must be at least 1")
    rows = table_rows(options)
    given = given_runs(options, rows)
    folder = options.out / f"table-{options.table}"
    make_folder(folder)
    lock_folder(options.out)
    each = folds(options.splitting, options.out / "splits")
    groups = merged_groups([fold.groups for fold in each])
    runs = plan_runs(options, rows, each, flags)
    _check_given(given, runs, each[0], groups)
    to_go_on = [run for run in runs if goes_on(run)]
    if options.slurm is None:
        check_device(run for run in runs if not run.finished())
    check_data(runs)
    for run in to_go_on:
        (run.folder / "test.json").unlink(missing_ok=True)  # no longer finished
    runs += given
    manifest = folder / "manifest.json"
    if options.slurm is None:
        run_all(runs, manifest, options.jobs or 1)
    else:
        submit_all(runs, manifest, options.jobs, slurm_options(options.slurm))
    failed = [run for run in runs if not run.finished()]
    for run in failed:
        print(f"failed: {run.row}, {run.fold}: {run.error} ({run.folder})", file=sys.stderr)
    write_table(options, [run for run in runs if run.finished()], folder, groups, flags)
    unlock_folder(options.out)
    if failed:
        raise SystemExit(1)


def table_rows(options: Options) -> dict[str, list[str]]:
    """The rows to train and their flags: those of the table, and one's own."""
    of_runs = OF_RUNS | {"seed"} if options.seeds else OF_RUNS
    return {row: ROWS[row] for row in chosen_rows(options)} | own_rows(options.row, of_runs)


def given_runs(options: Options, rows: Collection[str]) -> list[Run]:
    """The finished runs of --rows. Raises InputError for what cannot stand in the table."""
    found = []
    for row in parse_rows([text for texts in options.rows for text in texts]):
        if row.name in {*ROWS, *rows}:
            raise InputError(f"--rows {row.name}: a row that is trained has this name; give it another")
        read_result(row.name, row.folders)
        found += [Run(row.name, folder.name, folder, []) for folder in row.folders]
    names = [*rows, *(run.row for run in found)]
    if options.against is not None and options.against not in names:
        raise InputError(f"--against {options.against}: no row has this name; there are {', '.join(names)}")
    return found


def _check_given(given: list[Run], runs: list[Run], fold: Fold, groups: dict[str, str]) -> None:
    """Raises InputError for a run that is trained here, or whose scores cannot share a table with those of the data."""
    trained = {run.folder.resolve(): run.row for run in runs}
    labels = fold.opened.labels
    in_mm = all(geometry.spacing for geometry in fold.opened.geometry.values())
    for run in given:
        result = read_result(run.row, [run.folder])
        if {*result.classes, *result.regions} != {*labels.names[1:], *labels.regions}:
            raise InputError(
                f"--rows {run.folder}: has other classes or regions than {fold.data}; leave it out, or name others"
            )
        with errors_begin(f"--rows {run.folder}"):
            merged_groups([groups, result.groups])
        if in_mm and result.in_mm and result.tolerances != tolerances_of(labels):
            raise InputError(f"--rows {run.folder}: its NSD has other tolerances than {fold.data} gives; leave it out")
        if run.folder.resolve() in trained:
            raise InputError(f"--rows {run.folder}: is a run of the row {trained[run.folder.resolve()]} already")


def plan_runs(options: Options, rows: dict[str, list[str]], each: list[Fold], flags: list[str]) -> list[Run]:
    """Every row on every fold with every seed. Raises InputError for flags that no network takes."""
    runs = []
    for row, own in rows.items():
        for fold in each:
            for seed in training_seeds(options.seeds):
                name = fold.name if seed is None else f"{fold.name}-training-seed-{seed}"
                split = ["--split_file", str(fold.split_file)] if fold.split_file else []
                of_seed = [] if seed is None else ["--seed", str(seed)]
                # The row's own flags come last, so that no flag for all rows changes what a row is.
                of_run = [*flags, "--data", str(fold.data), *split, *of_seed, *own]
                config = parse_config(of_run)
                check_network(config.network)
                if config.loss.loss:
                    own_class("loss", config.loss.loss)
                runs.append(Run(row, name, options.out / "runs" / slug(row) / name, of_run))
    return runs


def check_device(runs: Iterable[Run]) -> None:
    """Raises InputError for a GPU that trainings here do not have, or that is not the one that each of them sees."""
    for device in {parse_config(run.flags).machine.device for run in runs}:
        if device.startswith("cuda") and not torch.cuda.device_count():
            raise InputError(f"--device {device}: no GPU is visible here; choose auto or cpu")
        if device.startswith("cuda:") and device != "cuda:0":
            raise InputError(
                f"--device {device}: each training sees one GPU, which is its cuda:0; leave it out, and choose GPUs by "
                "CUDA_VISIBLE_DEVICES"
            )


def training_seeds(text: str) -> list[int | None]:
    """ "0,1,2" -> [0, 1, 2]; None for the seed of main.py."""
    parts = [part.strip() for part in text.split(",")]
    if not text:
        return [None]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise InputError(f"--seeds {text}: must be different whole numbers, such as 0,1,2")
    return [int(part) for part in parts]


def check_data(runs: list[Run]) -> None:
    """Raises InputError where a run was trained on other slices, labels or preparation than its data set has now."""
    data: dict[tuple[Path, Path | None, str, str], Identity] = {}
    for run in runs:
        path = run.folder / "best.pt"
        if not path.exists():
            continue
        config = parse_config(run.flags)
        key = config.data, config.split_file, config.augmentation.mirror, config.augmentation.mirror_axis
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


def slurm_options(text: str) -> dict[str, Any]:
    """ "a=1 b=x" -> {"a": 1, "b": "x"}."""
    pairs = [part.partition("=") for part in text.split()]
    for name, equals, _ in pairs:
        if not (name and equals):
            raise InputError(f'--slurm {text}: must be NAME=VALUE pairs, such as "timeout_min=1440 gpus_per_node=1"')
    return {name: int(value) if value.isdecimal() else value for name, _, value in pairs}


def write_table(options: Options, runs: list[Run], folder: Path, groups: dict[str, str], flags: list[str]) -> None:
    """Write table.md, table.csv, table.tex, boxes.png and curves.png of the finished runs, and print the first."""
    rows: dict[str, list[Path]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run.folder)
    if not rows:
        for name in WRITTEN:  # those of an earlier table would stand for this one
            (folder / name).unlink(missing_ok=True)
        return
    results = [read_result(row, folders) for row, folders in rows.items()]
    results = [replace(result, groups=merged_groups([result.groups, groups])) for result in results]
    against = options.against if options.against in rows else None  # it may have failed
    _write(Table(options.table, results, against, flags), folder)


def _write(table: Table, folder: Path) -> None:
    write_text(folder / "table.md", markdown(table))
    write_csv(folder / "table.csv", table.rows())
    write_text(folder / "table.tex", latex(table))
    values = {result.name: result.values for result in table.results}
    with harmless(folder / "boxes.png"):
        save_boxes(folder / "boxes.png", values, table.results[0].labels, table.metrics[0])
    with harmless(folder / "curves.png"):
        save_curves(folder / "curves.png", {result.name: result.curves for result in table.results})
    print(f"\n{plain(table)}\n\nWritten to {folder}: {', '.join(WRITTEN)}")


def write_parameters(out: Path) -> None:
    """Table VIII: the parameters of every row in the paper's form, one channel and five classes."""
    counts = {}
    for row in PAPER["parameters"]:
        with torch.device("meta"):
            model = build_model(parse_config(["--channels", "1", "--classes", "5", *ROWS[row]]))
        counts[row] = count_parameters(model)
    rows = parameters_table(counts)
    folder = out / "table-VIII"
    make_folder(folder)
    write_text(folder / "table.md", parameters_markdown(rows))
    write_csv(folder / "table.csv", rows)
    write_text(folder / "table.tex", parameters_latex(rows))
    print(f"{parameters_markdown(rows)}\nWritten to {folder}: table.md, table.csv, table.tex")


@dataclass(frozen=True)
class Compare:
    """The table and the tests for any finished runs."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Rows: "NAME=folder,folder", the name where you like; the folders are the folds and seeds of the row."""
    against: str | None = None
    """The row that the others are tested against; by default the first."""
    out: Path = Path("reproduced/compared")
    """Folder for the table."""


def compare(options: Compare) -> None:
    """Write the table of the runs of one's own."""
    if not options.runs:
        raise InputError('no runs to compare; name their folders, such as "Mine=runs/a,runs/b" runs/c')
    refuse_run(options.out)
    rows = parse_rows(options.runs)
    table = read_rows(rows, options.against)
    make_folder(options.out)
    folders = [{"row": row.name, "folders": [str(folder) for folder in row.folders]} for row in rows]
    write_json(options.out / "manifest.json", folders)
    _write(table, options.out)


def main(arguments: list[str]) -> None:
    """reproduce.py's command line."""
    if arguments[:1] == ["compare"]:
        return compare(cli.parse(Compare, Compare.__doc__, arguments[1:], prog="reproduce.py compare"))
    if arguments and difflib.get_close_matches(arguments[0], ["compare"]):
        raise InputError(f"{arguments[0]}: no table of the paper; perhaps you meant compare, such as compare runs/a")
    options, rest = cli.parse(Options, __doc__, arguments, return_unknown_args=True)
    own = GROUP_OF.keys() - OF_RUNS - OF_ROWS
    if options.seeds:
        own -= {"seed"}
    unknown = [flag for flag in rest if flag.startswith("--") and field_of(flag) not in own]
    if unknown:
        name = field_of(unknown[0])
        if name in OF_ROWS:
            raise InputError(f"{unknown[0]}: says what a row is; give it in a --row of its own")
        close = difflib.get_close_matches(name, own, 1)
        remedy = f"; perhaps you meant --{close[0]}" if close else ""
        raise InputError(
            f"{unknown[0]}: no flag of reproduce.py, and none of main.py that may be given to all rows{remedy}"
        )
    reproduce(options, rest)


if __name__ == "__main__":
    with user_errors():
        main(sys.argv[1:])
