"""The page of a run: one HTML file that opens without internet."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from config import read_run
from experiments.results import LOG, REMEDY, SCORES, check_finite_json, read_summary, read_table
from metrics import mean_title, shown_metrics
from models import describe_network
from reporting.inside import look_inside
from reporting.viewer import Segmented, confusion, mean_dice, view
from utils import InputError, read_json, without_nan, write_text

PAGE = Path(__file__).resolve().parent / "page"
LIMIT = 15_000_000  # bytes of a page; the worst subjects come first, and those beyond it are left out of the viewer
WHILE_TRAINING = 5  # validation subjects in the viewer, so that writing the page costs next to nothing
INSPECTED = 5  # test subjects with maps of the refinement


def write_page(folder: Path, segmented: Segmented | None = None, model: nn.Module | None = None) -> Path:
    """Write report.html of a run, finished or not, from the tables in its folder; return its path.

    `segmented` fills the slice viewer, `model` the maps of the refinement.
    """
    page = read_tables(folder) | {"viewer": None, "inside": []}
    if segmented:
        _add_slices(page, segmented, model)
    write_text(folder / "report.html", fill("report.html", page))
    return folder / "report.html"


def _add_slices(page: dict[str, Any], segmented: Segmented, model: nn.Module | None) -> None:
    """Put the viewer into `page`, and with a model the maps of its refinement: the worst subjects first."""
    names = segmented.dataset.labels.names
    counts = {volume.subject: confusion(volume, len(names)) for volume in segmented.volumes}
    dice = {subject: np.nan_to_num(mean_dice(of_slices.sum(0)), nan=2) for subject, of_slices in counts.items()}
    worst = sorted(segmented.volumes, key=lambda volume: dice[volume.subject])
    page["classes"] = list(names[1:])
    if model:
        for volume in worst[:INSPECTED]:
            page["inside"] += look_inside(
                model, segmented.dataset, volume, counts[volume.subject], segmented.geometry[volume.subject]
            )
    room = LIMIT - len(fill("report.html", page)) - 10_000
    volumes = worst[:WHILE_TRAINING] if segmented.split == "val" else worst
    subjects = view(segmented, volumes, counts, room)
    tested = page["test"]["subjects"] if page["test"] else 0  # of many large volumes, only the worst were read
    left_out = max(tested, len(worst)) - len(subjects)
    page["viewer"] = {"split": segmented.split, "subjects": subjects, "left_out": left_out}


def fill(name: str, data: dict[str, Any]) -> str:
    """The page `name` with its style and scripts and with `data`, in one text."""
    page = _read(name)
    page = re.sub(r'<link rel="stylesheet" href="(.+?)">', lambda found: f"<style>\n{_read(found[1])}</style>", page)
    page = re.sub(r'<script src="(.+?)">', lambda found: f"<script>\n{_read(found[1])}", page)
    # No name in the data may end the script element: "<" is written as JSON's escape.
    text = json.dumps(without_nan(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return page.replace('id="data">', f'id="data">{text}', 1)


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def read_tables(folder: Path) -> dict[str, Any]:
    """What the files of a run say; None or nothing for those that are not there (yet)."""
    summary = _read_summary(folder / "test.json")
    log = _read_table(folder / "log.csv", LOG)
    scores = _read_table(folder / "test.csv", SCORES) if summary else []
    config = read_run(folder / "config.json")
    prefix = "val_dsc "
    columns = log[0] if log else {}
    names = [key.removeprefix(prefix) for key in columns if key.startswith(prefix)]
    regions = list(dict.fromkeys(row["class"] for row in scores if row.get("region")))
    classes = list(dict.fromkeys(row["class"] for row in scores if not row.get("region"))) or names
    environment = (summary or {}).get("environment") or _read_object(folder / "environment.json")
    return {
        "name": folder.resolve().name,
        "config": config and config.to_dict(),
        "network": config and describe_network(config.network),
        "evaluation": _read_object(folder / "evaluation.json"),
        "environment": environment,
        "log": log,
        "test": summary,
        "scores": scores,
        "classes": classes,
        "regions": regions,
        "mean": mean_title([*classes, *regions]),
        "metrics": [asdict(metric) for metric in shown_metrics(summary)] if summary else [],
    }


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: is no JSON object; {REMEDY}")
    check_finite_json(values, path)
    return values


def _read_summary(path: Path) -> dict[str, Any] | None:
    """test.json where it is there, with all that the page shows. Raises InputError where some of it is not."""
    if not path.exists():
        return None
    summary = read_summary(path)
    try:
        parts = [summary["overall"], *summary["per_class"].values(), *summary.get("per_region", {}).values()]
        of_metrics = [part[metric.key] for part in parts for metric in shown_metrics(summary)]
        shown = [statistics[name] for statistics in of_metrics for name in ("mean", "std")]
        right = bool(shown) and all(value is None or type(value) in (int, float) for value in shown)
        right = right and type(summary["subjects"]) is int and type(summary["best_epoch"]) in (int, type(None))
        right = right and isinstance(summary.get("environment", {}), dict)
    except (AttributeError, KeyError, TypeError):
        right = False
    if not right:
        raise InputError(f"{path}: is no summary of a test; {REMEDY}")
    return summary


def _read_table(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with numbers and booleans where a cell is one; NaN and empty cells are None."""
    return without_nan(read_table(path, needed)) if path.exists() else []
