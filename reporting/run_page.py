"""The page of a run: one HTML file that needs no network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from config import read_run
from metrics import Metric, shown_metrics
from models import describe_network
from reporting.inside import look_inside
from reporting.viewer import Segmented, confusion, finite, mean_dice, view
from utils import read_csv, read_json, write_text

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
            page["inside"] += look_inside(model, segmented.dataset, volume, counts[volume.subject])
    room = LIMIT - len(fill("report.html", page)) - 10_000
    volumes = worst[:WHILE_TRAINING] if segmented.split == "val" else worst
    subjects = view(segmented, volumes, counts, room)
    page["viewer"] = {"split": segmented.split, "subjects": subjects, "left_out": len(worst) - len(subjects)}


def fill(name: str, data: dict[str, Any]) -> str:
    """The page `name` with its style and scripts and with `data`, in one text."""
    page = _read(name)
    page = re.sub(r'<link rel="stylesheet" href="(.+?)">', lambda found: f"<style>\n{_read(found[1])}</style>", page)
    page = re.sub(r'<script src="(.+?)">', lambda found: f"<script>\n{_read(found[1])}", page)
    # No name in the data may end the script element: "<" is written as JSON's escape.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return page.replace('id="data">', f'id="data">{text}', 1)


def _read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def read_tables(folder: Path) -> dict[str, Any]:
    """What the files of a run say; None or nothing for those that are not there (yet)."""
    summary = _read_if_there(folder / "test.json")
    log = _read_table(folder / "log.csv")
    scores = _read_table(folder / "test.csv") if summary else []
    config = read_run(folder / "config.json")
    prefix = "val_dsc "
    columns = log[0] if log else {}
    names = [key.removeprefix(prefix) for key in columns if key.startswith(prefix)]
    return {
        "name": folder.resolve().name,
        "config": config and config.to_dict(),
        "network": config and describe_network(config.network),
        "environment": _read_if_there(folder / "environment.json"),
        "log": log,
        "test": summary,
        "scores": scores,
        "classes": list(dict.fromkeys(row["class"] for row in scores)) or names,
        "metrics": [describe_metric(metric) for metric in shown_metrics(summary["overall"])] if summary else [],
    }


def describe_metric(metric: Metric) -> dict[str, Any]:
    """A metric for the page's scripts."""
    return {
        "key": metric.key,
        "name": metric.name,
        "unit": metric.unit,
        "scale": metric.scale,
        "lower": metric.lower_is_better,
    }


def _read_if_there(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _read_table(path: Path) -> list[dict[str, Any]]:
    """Rows with numbers and booleans where a cell is one; NaN and empty cells are None."""
    if not path.exists():
        return []
    texts = ("subject", "class")
    return [{key: cell if key in texts else _value(cell) for key, cell in row.items()} for row in read_csv(path)]


def _value(cell: str) -> Any:
    if cell == "":
        return None
    if cell in ("True", "False"):
        return cell == "True"
    try:
        return finite(float(cell))
    except ValueError:
        return cell
