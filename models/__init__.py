"""Networks. Nothing in here knows about files, data sets or training."""

from __future__ import annotations

from torch import nn

from config import Config
from models.ms_dual_guided import MSDualGuided, Output
from models.released import load_released

__all__ = ["MSDualGuided", "Output", "build_model", "load_released"]


def build_model(config: Config) -> nn.Module:
    """The network that `config` describes.

    Raises ValueError for options that exclude each other.
    """
    return MSDualGuided(
        channels=config.channels,
        classes=config.classes,
        backbone=config.backbone,
        pretrained=config.pretrained,
        steps=config.steps,
        position_attention=config.position_attention,
        channel_attention=config.channel_attention,
        guidance=config.guidance,
        encoder_decoder=config.encoder_decoder,
        deep_supervision=config.deep_supervision,
        variant=config.variant,
    )
