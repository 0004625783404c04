"""The networks that the paper compares itself with, and its ablations of one step."""

from models.baselines.attention_unet import AttentionUNet
from models.baselines.daf import DAF
from models.baselines.danet import DANet
from models.baselines.pan import PAN
from models.baselines.smp import SegmentationModel
from models.baselines.unet import UNet

__all__ = ["DAF", "PAN", "AttentionUNet", "DANet", "SegmentationModel", "UNet"]
