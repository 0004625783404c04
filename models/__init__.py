"""Networks. Nothing in here knows about files, data sets or training."""

from __future__ import annotations

from torch import nn

from config import Config
from models.baselines import DAF, PAN, AttentionUNet, DANet, SegmentationModel, UNet
from models.ms_dual_guided import MSDualGuided
from models.network import Network, Output
from models.recompute import recompute_activations
from models.released import load_released
from models.sync_batch_norm import synchronize_batch_norm

__all__ = [
    "MSDualGuided",
    "Network",
    "Output",
    "build_model",
    "load_released",
    "recompute_activations",
    "synchronize_batch_norm",
]

# Table I's rows of one step: DAF with another attention.
DAF_ATTENTION = {"daf": "sigmoid", "daf_pam": "position", "daf_cam": "channel", "daf_dual": "dual"}


def build_model(config: Config) -> nn.Module:
    """The network that `config` describes.

    Raises ValueError for options that exclude each other.
    """
    shape = config.channels, config.classes
    backbone = config.backbone, config.pretrained
    match config.model:
        case "ms_dual_guided":
            return MSDualGuided(
                *shape,
                *backbone,
                steps=config.steps,
                position_attention=config.position_attention,
                channel_attention=config.channel_attention,
                guidance=config.guidance,
                encoder_decoder=config.encoder_decoder,
                neutral_guide=config.neutral_guide,
                deep_supervision=config.deep_supervision,
                fine_decoder=config.fine_decoder,
                variant=config.variant,
            )
        case "unet":
            return UNet(*shape)
        case "attention_unet":
            return AttentionUNet(*shape)
        case "danet":
            return DANet(*shape, *backbone)
        case "pan":
            return PAN(*shape, *backbone)
        case "daf" | "daf_pam" | "daf_cam" | "daf_dual":
            return DAF(*shape, *backbone, DAF_ATTENTION[config.model], config.variant)
        case _:
            return SegmentationModel(config.model.removeprefix("smp."), *shape, *backbone)
