"""What several test files need: one thread for torch, and small data sets on disk."""

from __future__ import annotations

import locale
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import networks

LOCALE = locale.setlocale(locale.LC_CTYPE)
torch.set_num_threads(1)  # threads that wait for each other make tiny networks slow on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that no core waits for a last one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def keep_locale() -> Iterator[None]:
    """SimpleITK's DICOM reader, also in fixtures, sets the locale to C, in which Python takes text files for ASCII."""
    locale.setlocale(locale.LC_CTYPE, LOCALE)
    yield
    locale.setlocale(locale.LC_CTYPE, LOCALE)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """--model tiny is a network that trains in no time; processes of tests.helpers.processes have it anyway."""
    networks.register(monkeypatch)


@pytest.fixture
def make_data(tmp_path: Path):
    """A function that writes a valid data set of 40 x 48 slices with CHAOS's grey values, and returns its root."""

    def make(subjects: dict[str, list[str]] | None = None, numbers: tuple[int, ...] = (1, 2), size=(40, 48)) -> Path:
        rng = np.random.default_rng(0)
        for split, names in (subjects or {"train": ["1"], "val": ["2"], "test": ["3"]}).items():
            for kind in ("Img", "GT"):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            for name in names:
                for number in numbers:
                    image = rng.integers(0, 256, size, np.uint8)
                    mask = rng.choice(np.array([0, 63, 126, 189, 252], np.uint8), size)
                    Image.fromarray(image).save(tmp_path / split / "Img" / f"Subj_{name}slice_{number}.png")
                    Image.fromarray(mask).save(tmp_path / split / "GT" / f"Subj_{name}slice_{number}.png")
        return tmp_path

    return make
