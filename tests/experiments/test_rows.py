"""What the rows of the paper's tables are."""

from __future__ import annotations

import pytest
import torch

from config import PRESETS, parse_config
from experiments.rows import ROWS, STEPS, own_rows
from models import MSDualGuided, build_model
from models.semantic import SemanticModule


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_changes_what_a_row_is(preset, no_initialization):
    """Parts of the networks, by their modules, for the rows of Tables I and II."""
    for row, flags in ROWS.items():
        config = parse_config(["--preset", preset, "--backbone", "resnet18", *flags])
        with torch.device("meta"):
            model = build_model(config)
        assert isinstance(model, MSDualGuided) == ("MS-Dual" in row or row.startswith("w/o")), row
        if isinstance(model, MSDualGuided):
            guided = "Guided" in row or row.startswith("w/o")
            assert all((step.semantic is not None) == guided for step in model.steps), row
            assert (model.raw_heads is None) == ("deep supervision" in row), row
            assert model.decoder is None, row
            encoders = any(isinstance(part, SemanticModule) for part in model.modules())
            assert encoders == (guided and "encoder-decoder" not in row), row
            assert len(model.steps) == next((n for text, n in STEPS.items() if text in row), 2), row


def test_own_rows_by_hand():
    """The first colon ends the name; the rest is as on a command line."""
    rows = own_rows(["Mine (2): --model my.module:Net --betas 0.9 '0.99'", "Plain:"], {"data"})
    assert rows == {"Mine (2)": ["--model", "my.module:Net", "--betas", "0.9", "0.99"], "Plain": []}
