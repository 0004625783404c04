"""Runs and segmented subjects for pages, without any training."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from config import Config
from data.folder import open_data
from data.volumes import Volume
from metrics import score_subject, summarize
from reporting.viewer import Segmented
from utils import write_csv, write_json

CLASSES = ("background", "liver", "right kidney", "left kidney", "spleen")
CONFIG = Config.of(backbone="resnet18", steps=2, epochs=2, batch_size=4, workers=0, device="cpu", amp="off")


def write_run(folder: Path, names: list[str], scores: list[dict], log: list[dict], **summary: Any) -> Path:
    """A run folder as main.py leaves it, with these scores, and with more in its test.json."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", CONFIG.to_dict())
    if log:
        write_csv(folder / "log.csv", log)
    if scores:
        write_csv(folder / "test.csv", scores)
        cost = {"parameters": 12, "best_epoch": 1, "epochs": 1, "seconds": 3.0, "memory_gib": 0.5}
        write_json(folder / "test.json", summarize(scores) | cost | summary)
    return folder


def odd_scores(names: list[str], subjects: list[str]) -> list[dict]:
    """A class that is missed, one that is nowhere, the others right."""
    rng = np.random.default_rng(0)
    rows = []
    for subject in subjects:
        truth = rng.integers(0, len(names) + 1, (2, 8, 8))
        truth[(truth == len(names)) & (truth > 1)] = 0
        prediction = np.where(truth == 1, 0, truth)
        scored = score_subject(prediction, truth, ("background", *names))
        rows += [{"subject": subject} | row for row in scored]
    return rows


def held(page: Path) -> dict[str, Any]:
    """The data in a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])


def big_set(root: Path, subjects: int, noise: float) -> Segmented:
    """Subjects of 40 slices of 256 x 256 with five classes, as arrays and files."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:256, :256]
    grain = rng.standard_normal((40, 256, 256), np.float32)  # to draw it again for each class takes seconds
    volumes = []
    for split in ("train", "val", "test"):
        for kind in ("Img", "GT"):
            (root / split / kind).mkdir(parents=True)
    for subject in range(subjects):
        target = np.zeros((40, 256, 256), np.uint8)
        for k in range(1, 5):
            z, y, x = rng.uniform((10, 60, 60), (30, 196, 196))
            radius = 30 * (1 - ((np.arange(40) - z) / 20) ** 2).clip(0)[:, None, None]
            distance = ((rows - y) ** 2 + (columns - x) ** 2).astype(np.float32)
            target[distance < radius**2 + 60 * np.roll(grain, 7 * k + subject, axis=2)] = k
        volumes.append(Volume(str(subject), np.roll(target, 3, axis=2), target))
        image = (60 + 30 * target + noise * np.roll(grain, subject, axis=1)).clip(0, 255).astype(np.uint8)
        for z in range(40):
            split = "test" if z or subject > 1 else ("train", "val")[subject]
            name = f"Subj_{subject if split == 'test' else split}slice_{z}.png"
            Image.fromarray(image[z]).save(root / split / "Img" / name, compress_level=0)
            Image.fromarray(target[z] * 63).save(root / split / "GT" / name, compress_level=1)
    data = open_data(root)
    volumes = [Volume(v.subject, v.prediction[1:], v.target[1:]) if int(v.subject) < 2 else v for v in volumes]
    return Segmented("test", data.dataset("test"), volumes, data.geometry)
