"""Runs with pages, and a browser to look at them; the tests change none of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.folder import open_data
from data.volumes import Volume
from inference.segmentation import segment_subjects
from main import main
from metrics import score_subject, summarize
from models import build_model
from reporting.run_page import write_page
from reporting.viewer import Segmented
from tests.helpers import networks
from tests.helpers.pages import CLASSES, CONFIG
from training.checkpoint import save_checkpoint
from training.device import Machine
from utils import read_csv, write_csv, write_json

NO_CHECKPOINTS = shutil.ignore_patterns("*.pt", "predictions")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices with blobs for organs."""
    root = tmp_path_factory.mktemp("blobs")
    rows, columns = np.mgrid[:48, :64]
    for split, names in {"train": ["1"], "val": ["2"], "test": ["3", "11"]}.items():
        for kind in ("Img", "GT"):
            (root / split / kind).mkdir(parents=True)
        for name in names:
            for number in (8, 9, 10, 12):  # 11 is missing
                mask = np.zeros((48, 64), np.uint8)
                for k, (row, column) in enumerate([(12, 14), (12, 46), (34, 16), (34, 48)], 1):
                    mask[(rows - row) ** 2 + (columns - column) ** 2 < 20 + 6 * number] = 63 * k
                noise = np.random.default_rng(number).normal(0, 12, mask.shape)
                Image.fromarray(mask).save(root / split / "GT" / f"Subj_{name}slice_{number}.png")
                image = (mask + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(image).save(root / split / "Img" / f"Subj_{name}slice_{number}.png")
    return root


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on these slices, with the tiny network: what main.py writes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        networks.register(patch)
        main(CONFIG.change(model="tiny", data=data, out=folder))
    return folder


@pytest.fixture(scope="session")
def refined(data: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as it would be with the paper's network and random weights: its page shows the refinement."""
    folder = tmp_path_factory.mktemp("refined") / "run"
    shutil.copytree(run, folder, ignore=NO_CHECKPOINTS)
    opened, config = open_data(data), CONFIG.change(data=data, out=folder)
    write_json(folder / "config.json", config.to_dict())
    torch.manual_seed(0)
    model = build_model(config).eval()
    values = {"model": model.state_dict(), "config": config.to_dict(), "data": opened.identity().to_dict(), "epoch": 1}
    save_checkpoint(folder / "best.pt", values)
    dataset, machine = opened.dataset("test"), Machine.of(config.machine)
    volumes = list(segment_subjects(model, dataset, list(dataset.subjects()), config.evaluation, machine))
    write_scores(folder, volumes)
    write_page(folder, Segmented("test", dataset, volumes, opened.geometry), model)
    return folder


@pytest.fixture(scope="session")
def volumes(data: Path) -> list[Volume]:
    """The test subjects as a good network would segment them."""
    dataset = open_data(data).dataset("test")
    found = []
    for subject, indices in dataset.subjects().items():
        slices = [dataset[index][1].numpy().astype(np.uint8) for index in indices]
        target = np.stack([*slices[:3], np.zeros_like(slices[0]), slices[3]])
        prediction = np.roll(target, (1, 3), axis=(1, 2))
        prediction[:, 8:11, :] = 2  # a wrong class
        if subject == "11":
            prediction[prediction == 4] = 0
        found.append(Volume(subject, prediction, target))
    return found


@pytest.fixture(scope="session")
def painted(data: Path, run: Path, volumes: list[Volume], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with these segmentations in its page and tables, and with losses of a guided network in its log."""
    folder = tmp_path_factory.mktemp("painted") / "run"
    shutil.copytree(run, folder, ignore=NO_CHECKPOINTS)
    write_scores(folder, volumes)
    log = read_csv(folder / "log.csv")
    for epoch, row in enumerate(log, 1):
        row |= {"guided": 0.5 / epoch, "reconstruction": 1.25 / epoch}
    write_csv(folder / "log.csv", log)
    opened = open_data(data)
    write_page(folder, Segmented("test", opened.dataset("test"), volumes, opened.geometry))
    return folder


def write_scores(folder: Path, volumes: list[Volume]) -> None:
    """test.csv and test.json of these segmentations."""
    rows: list[dict[str, Any]] = []
    for volume in volumes:
        scores = score_subject(volume.prediction, volume.target, CLASSES)
        rows += [{"subject": volume.subject} | row for row in scores]
    cost = {"parameters": 1234567, "best_epoch": 2, "epochs": 2, "seconds": 3.0, "memory_gib": 0.5}
    write_csv(folder / "test.csv", rows)
    write_json(folder / "test.json", summarize(rows) | cost)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A real one, without a window."""
    from docs.screenshots import browser

    with browser() as driver:
        driver.set_script_timeout(20)
        yield driver
