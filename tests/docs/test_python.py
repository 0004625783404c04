"""docs/python.md: its code runs as it stands, and scores as main.py does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.phantom import write_dataset

ROOT = Path(__file__).parents[2]


def make_odd(root: Path) -> None:
    """Leave out spacings and a slice of a test subject, and mark pixels that nobody annotated."""
    described = json.loads((root / "dataset.json").read_text())
    described["labels"]["ignore"] = 200
    del described["subjects"]
    (root / "dataset.json").write_text(json.dumps(described))
    first, second, *_ = sorted((root / "test" / "GT").iterdir())
    mask = np.array(Image.open(first))
    mask[:20] = 200
    Image.fromarray(mask).save(first)
    second.unlink()
    (root / "test" / "Img" / second.name).unlink()


@pytest.mark.slow
@pytest.mark.parametrize("odd", [False, True])
def test_the_lines_of_the_page_run_in_another_folder(tmp_path, odd):
    write_dataset(tmp_path / "dataset", subjects=(2, 1, 2), size=64, slices=(4, 5))
    if odd:
        make_odd(tmp_path / "dataset")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    code = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(code) == 2
    keys = ["dsc", "msd", "hd95_worst"] if odd else ["dsc", "msd_mm", "hd95_mm"]
    # The same scores by the functions that main.py calls.
    check = """
import numpy as np
from config import EvaluationConfig, MachineConfig
from inference.segmentation import segment_split
from training.device import Machine
from training.scores import score_volume
machine = Machine.of(MachineConfig(device="cpu", amp="off", workers=0))
volumes = segment_split(network, test_set, EvaluationConfig(largest_component=False), machine, "test")
theirs = [row for v in volumes for row in score_volume(v, data.geometry[v.subject], data.labels, {})]
assert [row["class"] for row in theirs] == [row["class"] for row in rows] and len(rows) == 8
for row, their in zip(rows, theirs):
    np.testing.assert_equal([row[key] for key in keys], [their[key] for key in keys])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"{''.join(code)}keys = {keys}{check}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"'mean': 0\.\d+, 'std': .*'n': 2", done.stdout)
