"""The released network's checkpoints, read into MSDualGuided."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from models.encoder_weights import Normalization
from models.ms_dual_guided import MSDualGuided
from models.multi_scale import SCALES

# Layers that the released network has but whose output its forward pass never uses.
UNUSED = re.compile(r"conv6|conv7|attention\d|refine\d|resnext\.fc")

# Key of the released code -> ours. Scales count from the finest, 1, except in conv_sem and conv8: from the coarsest.
RULES = [
    (r"resnext\.layer0\.(\d)", lambda i: f"backbone.stem.{i}"),
    (r"resnext\.layer1\.1", lambda: "backbone.stages.0"),
    (r"resnext\.layer([234])", lambda stage: f"backbone.stages.{int(stage) - 1}"),
    (r"down(\d)", lambda scale: f"reduce.{int(scale) - 1}"),
    (r"fuse1\.fuse_attn\.(\d)", lambda i: f"fuse.{int(i) // 3}.{int(i) % 3}"),
    (r"pam_attention_(\d)_(\d)\.attn", lambda step, scale: f"steps.{int(step) - 1}.position.{int(scale) - 1}"),
    (r"cam_attention_(\d)_(\d)\.attn", lambda step, scale: f"steps.{int(step) - 1}.channel.{int(scale) - 1}"),
    (r"semanticModule_(\d)_1\.enc(\d)\.encode\.(\d)",
     lambda step, block, i: f"steps.{int(step) - 1}.semantic.encoder.{7 * (int(block) - 1) + int(i)}"),
    (r"semanticModule_(\d)_1\.dec(\d)\.decode\.(\d)",
     lambda step, block, i: f"steps.{int(step) - 1}.semantic.decoder.{7 * (2 - int(block)) + int(i)}"),
    (r"conv_sem_(\d)_(\d)", lambda step, scale: f"steps.{int(step) - 1}.guide.{SCALES - int(scale)}"),
    (r"conv8_(1?)(\d)(?=\.)", lambda second, scale: f"steps.{1 if second else 0}.project.{SCALES - int(scale)}"),
    (r"predict(\d)_2", lambda scale: f"refined_heads.0.{int(scale) - 1}"),
    (r"predict(\d)", lambda scale: f"raw_heads.{int(scale) - 1}"),
]  # fmt: skip

# Inside an attention layer: convolution, BN and PReLU; the attention module; convolution, BN and PReLU.
ATTENTION_LAYER = {
    "0": "0.0", "1": "0.1", "2": "0.2",
    "3.gamma": "1.gamma", "3.query_conv": "1.query", "3.key_conv": "1.key", "3.value_conv": "1.value",
    "4": "2.0", "5": "2.1", "6": "2.2",
}  # fmt: skip


def load_released(state_dict: dict[str, Tensor]) -> MSDualGuided:
    """The released network (ResNeXt-101 32x8d, two steps) with the weights of `state_dict`, in their dtype.

    Returned in eval mode. Weights of layers that the released forward pass never uses are left out.
    Raises ValueError where keys are missing, unknown, or not of the shape that this network has.
    """
    translated = {_translate(key): value.clone() for key, value in state_dict.items() if not UNUSED.match(key)}
    try:
        channels, head = translated["backbone.stem.0.weight"].shape[1], translated["raw_heads.0.weight"]
        for name, value in Normalization(channels).to(head).state_dict().items():
            translated[f"backbone.normalize.{name}"] = value
        with torch.device("meta"):
            model = MSDualGuided(channels, len(head), "resnext101_32x8d", variant="released")
        model.load_state_dict(translated, assign=True)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"not a state dict of the released network: {error}") from None
    return model.eval()


def _translate(key: str) -> str:
    for pattern, rule in RULES:
        match = re.match(pattern, key)
        if match is None:
            continue
        prefix, rest = rule(*match.groups()), key[match.end() + 1 :]
        if "_attention_" in key:
            part = re.match(r"3\.[a-z_]+|\d", rest)
            rest = ATTENTION_LAYER.get(part[0], "?") + rest[part.end() :] if part else "?"
        return f"{prefix}.{rest}"
    raise ValueError(f"not a state dict of the released network: unknown key {key}")
