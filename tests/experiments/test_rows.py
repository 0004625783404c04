"""What the rows of the paper's tables are."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import BatchNorm2d

from config import PRESETS, parse_config
from experiments.rows import ROWS, own_rows
from models import MSDualGuided, build_model
from models.attention import PositionAttention
from models.semantic import SemanticModule


def steps_of(row: str) -> int:
    """Those that its name says, or two."""
    found = re.search(r"(\d) steps?\b", row)
    return int(found[1]) if found else 2


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
            encoders = [part for part in model.modules() if isinstance(part, SemanticModule)]
            assert bool(encoders) == (guided and "encoder-decoder" not in row), row
            assert all(module.encoder[0].out_channels == 256 for module in encoders), row
            assert all(isinstance(module.encoder[1], BatchNorm2d) for module in encoders), row
            assert len(model.steps) == steps_of(row), row
            assert not model.native, row
            assert all(part.pooling == 1 for part in model.modules() if isinstance(part, PositionAttention)), row
            assert not config.network.neutral_guide, row


def test_own_rows_by_hand():
    """The first colon ends the name; the rest is as on a command line."""
    rows = own_rows(["Mine (2): --model my.module:Net --betas 0.9 '0.99'", "Plain:"], {"data"})
    assert rows == {"Mine (2)": ["--model", "my.module:Net", "--betas", "0.9", "0.99"], "Plain": []}
