"""What each row of the paper's tables is: the flags of main.py that make it."""

from __future__ import annotations

# Flags of main.py that make each row of the paper's tables. "MS-Dual" and "MS-Dual-Guided" have two steps.
ROWS = {
    "U-Net": ["--model", "unet"],
    "Attention U-Net": ["--model", "attention_unet"],
    "DANet": ["--model", "danet", "--backbone", "resnet101"],
    "PAN (ResNet-34)": ["--model", "pan", "--backbone", "resnet34"],
    "PAN (ResNet-101)": ["--model", "pan", "--backbone", "resnet101"],
    "DAF": ["--model", "daf"],
    "PAM": ["--model", "daf_pam"],
    "CAM": ["--model", "daf_cam"],
    "DANet-step": ["--model", "daf_dual"],
}
# What a row of the paper is, whatever the preset: flags that no call may give to all rows.
IDENTITY = {
    "guidance": True,
    "deep_supervision": True,
    "encoder_decoder": True,
    "position_attention": True,
    "channel_attention": True,
    "fine_decoder": False,
}
STEPS = {"1 step": 1, "2 steps": 2, "3 steps": 3, "5 steps": 5}
for title, steps in STEPS.items():
    parts = [f"--{name}" if present else f"--no_{name}" for name, present in IDENTITY.items()]
    whole = ["--model", "ms_dual_guided", "--steps", str(steps), *parts]
    ending = "" if steps == 2 else f" ({title})"
    ROWS[f"MS-Dual{ending}"] = [*whole, "--no_guidance"]
    ROWS[f"MS-Dual-Guided{ending}"] = whole
    ROWS[f"w/o deep supervision ({title})"] = [*whole, "--no_deep_supervision"]
    ROWS[f"w/o encoder-decoder ({title})"] = [*whole, "--no_encoder_decoder"]
