"""Every hyperparameter, its unit and where its value comes from. Edit a value here, or give it as a flag of main.py."""

from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from utils import InputError, read_json, run_folders

BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)

PATHS = ("data", "out", "split_file")
OF_THE_DATA = ("channels", "classes")  # main.py sets them, whatever is given
WITHOUT_BACKBONE = ("unet", "attention_unet")
OF_GUIDANCE = ("encoder_decoder", "neutral_guide", "beta", "gamma")
OF_MS_DUAL_GUIDED = (
    "steps",
    "position_attention",
    "channel_attention",
    "guidance",
    *OF_GUIDANCE,
    "deep_supervision",
    "fine_decoder",
)
MODELS = ("ms_dual_guided", "unet", "attention_unet", "danet", "pan", "daf", "daf_pam", "daf_cam", "daf_dual")


@dataclass(frozen=True)
class Config:
    """Guided multi-scale attention segmentation (Sinha & Dolz, JBHI 2020). The defaults are the paper's protocol."""

    preset: Literal["paper", "released", "quick", "modern"] = "paper"
    """Named set of values to start from; the other flags change single values of it."""

    # ---- files
    data: Path = Path("dataset")
    """Data set: train, val and test, each with Img and GT, in the layout of the README."""
    out: Path | None = None
    """Run folder; by default the next free runs/NNN-PRESET."""
    resume: bool = False
    """Continue the run in --out (without --out: the newest in runs/); with nothing to continue, start it."""

    split_file: Path | None = None
    """Split the subjects in --data by this file, {"train": ["1", "2"], "val": ["3"], "test": ["4"]}, not by folder."""

    # ---- network
    model: str = "ms_dual_guided"
    """ms_dual_guided; unet, attention_unet, danet, pan, daf; Table I's daf_pam, daf_cam, daf_dual; or smp.NAME, an
    architecture of segmentation_models.pytorch."""
    channels: int = 1
    """Image channels. main.py sets it to what the data set has."""
    classes: int = 5
    """Classes with the background; CHAOS has five. main.py sets it to what the data set has."""
    backbone: str = "resnext101_32x4d"
    """resnet18, 34, 50, 101 or 152, wide_resnet50_2 or 101_2, resnext50_32x4d, resnext101_32x4d, 32x8d or 64x4d; with
    smp.NAME an encoder of that library. The paper says ResNet-101; its parameter counts are ResNeXt-101 32x4d's."""
    pretrained: bool = False
    """Start the backbone from ImageNet weights. The paper trains from scratch."""
    variant: Literal["paper", "released"] = "paper"
    """Where paper and released code differ: CAM by Eq. 4 and a guiding convolution shared by the scales, or neither."""
    steps: int = 2
    """Refinement steps, 1 or more. Table II has 1, 2, 3 and 5."""
    position_attention: bool = True
    """Use position attention modules (PAM)."""
    channel_attention: bool = True
    """Use channel attention modules (CAM)."""
    guidance: bool = True
    """Use the semantic module and its losses; without it the network is the paper's MS-Dual."""
    encoder_decoder: bool = True
    """The semantic module is an encoder-decoder; without it, the direct distance of the features ("dist", Table II)."""
    neutral_guide: bool = False
    """Start the guiding convolution as a factor of one everywhere, so that the network begins as MS-Dual. The released
    code starts it with random weights, as all others."""
    deep_supervision: bool = True
    """Supervise the raw maps and those of all steps but, of several, the first; without it the last step's alone."""
    fine_decoder: bool = False
    """Predict by a decoder from the refined maps and Res-1 to the image's own size, supervised beside the other maps.
    The released code predicts by the mean of the last step's maps, at a quarter of it. Of ms_dual_guided."""

    # ---- loss: L = alpha * segmentation + beta * guided + gamma * reconstruction (Eq. 10, 7, 6)
    alpha: float = 1.0
    """Weight of the segmentation losses of all maps: cross-entropy, and Dice loss where --dice is not 0."""
    beta: float = 0.25
    """Weight of the distances between the latent features of successive steps."""
    gamma: float = 0.1
    """Weight of the reconstruction errors of the semantic module."""
    dice: float = 0.0
    """Weight of a soft Dice loss beside each map's cross-entropy. The paper has none."""

    # ---- optimization
    epochs: int = 500
    """Passes over the training slices."""
    batch_size: int = 8
    """Slices in a training step, of all processes together."""
    lr: float = 1e-3
    """Learning rate of Adam at the start; with one_cycle the largest."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates of the first and second moment."""
    schedule: Literal["plateau", "one_cycle"] = "plateau"
    """plateau lowers the rate when the validation stands still; one_cycle raises it from lr / 25 in the first 30 % of
    the steps and lowers it to nearly 0 until the last one, along cosines."""
    plateau_epochs: int = 50
    """Validations without a better score after which the learning rate falls."""
    plateau_factor: float = 0.5
    """What the learning rate is multiplied by then."""
    max_skipped: int = 10
    """Steps of an epoch whose loss or gradient is not finite that are left out; at one more the training stops."""

    # ---- prediction
    largest_component: bool = False
    """Keep only the largest connected piece of each class in a subject's segmentation."""

    # ---- augmentation of image and mask together
    flip_probability: float = 0.5
    """Chance of a vertical flip and, drawn apart, of a horizontal flip."""
    rotation_probability: float = 0.5
    """Chance of a rotation."""
    rotation_degrees: float = 30.0
    """Rotations are uniform between minus and plus this angle, in degrees."""
    affine_probability: float = 0.0
    """Chance of another size (by 0.8 to 1.25), aspect (each side by up to 9 %, in opposite directions), shear (up to
    0.1) and place (by up to a tenth of the sides), drawn together."""
    intensity_probability: float = 0.0
    """Chance of each change of the image: noise, blur, brightness, contrast, low resolution, bias field, gamma."""

    # ---- machine
    seed: int = 0
    """Seed of the initial weights, the order of the slices and the augmentation."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same result every time, where PyTorch has them: slower. On the CPU they
    always do."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is the first visible GPU, else the CPU."""
    amp: Literal["auto", "on", "off"] = "auto"
    """bfloat16 autocast (attention energies and losses stay float32); auto: where the device computes in it."""
    sync_batch_norm: bool = False
    """With torchrun: batch normalization over the slices of all processes, as if one process had the whole batch."""
    recompute: bool = False
    """Keep fewer activations and compute them again in the backward pass: less memory, more time, the same results."""
    eval_batch_size: int = 16
    """Slices in a forward pass of validation and test; changes speed and memory, not results."""
    workers: int | Literal["auto"] = "auto"
    """Processes that load and augment slices; 0 does it in the training process. auto: 2 beside a GPU; none on the CPU,
    whose cores and memory the training needs. The results are the same."""

    def __post_init__(self) -> None:
        at_least_one = ("channels", "steps", "epochs", "batch_size", "eval_batch_size", "plateau_epochs")
        if self.model not in MODELS and not self.model.startswith("smp."):
            raise InputError(f"--model {self.model}: must be {', '.join(MODELS)}, or smp.NAME")
        if self.backbone not in BACKBONES and not self.model.startswith("smp."):
            raise InputError(f"--backbone {self.backbone}: must be {', '.join(BACKBONES)}")
        if self.pretrained and self.model in WITHOUT_BACKBONE:
            raise InputError(f"--pretrained: {self.model} has no backbone with ImageNet weights")
        if self.recompute and self.model in WITHOUT_BACKBONE:
            raise InputError(f"--recompute: {self.model} has no blocks that it knows; lower --batch_size instead")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed}: must lie between 0 and {2**32 - 1}")
        if not 0 <= self.rotation_degrees <= 180:
            raise InputError(f"--rotation_degrees {self.rotation_degrees}: must lie between 0 and 180")
        minima = dict.fromkeys(at_least_one, 1) | {"max_skipped": 0, "classes": 2}
        for name, minimum in minima.items():
            if getattr(self, name) < minimum:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {minimum}")
        if self.workers != "auto" and self.workers < 0:
            raise InputError(f"--workers {self.workers}: must be at least 0, or auto")
        chances = ("flip_probability", "rotation_probability", "affine_probability", "intensity_probability")
        for name in chances:
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name} {getattr(self, name)}: must lie between 0 and 1")
        for name in ("alpha", "beta", "gamma", "dice"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"--{name} {getattr(self, name)}: must not be negative")
        if not 0 < self.lr < float("inf"):
            raise InputError(f"--lr {self.lr}: must be positive")
        if not 0 < self.plateau_factor <= 1:
            raise InputError(f"--plateau_factor {self.plateau_factor}: must lie above 0 and not above 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"--betas {self.betas}: both must lie in [0, 1)")
        if not (self.position_attention or self.channel_attention):
            raise InputError("--no-position_attention and --no-channel_attention: a step needs one of the two")

    @property
    def network(self) -> str:
        """Model and backbone for people to read."""
        model = self.model + " without guidance" * (self.model == "ms_dual_guided" and not self.guidance)
        return model if self.model in WITHOUT_BACKBONE else f"{model}, {self.backbone}"

    def notes(self) -> list[str]:
        """Lines where flags that were given do nothing."""
        preset, idle = PRESETS[self.preset], []
        if self.model != "ms_dual_guided":
            idle.append((OF_MS_DUAL_GUIDED, "only of --model ms_dual_guided"))
        elif not self.guidance:
            idle.append((OF_GUIDANCE, "only with --guidance"))
        if self.model in WITHOUT_BACKBONE:
            idle.append((("backbone",), f"--model {self.model} has none"))
        if self.schedule == "one_cycle":
            idle.append((("plateau_epochs", "plateau_factor"), "only with --schedule plateau"))
        given = [
            ([f"--{name}" for name in names if getattr(self, name) != getattr(preset, name)], why)
            for names, why in idle
        ]
        return [f"{', '.join(flags)} without effect: {why}" for flags, why in given if flags]

    def to_dict(self) -> dict[str, Any]:
        """All values as JSON can hold them."""
        values = dataclasses.asdict(self)
        paths = {name: values[name] and str(values[name]) for name in PATHS}
        return values | paths | {"betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`. Raises InputError for an unknown field; one that is missing gets its default.

        The default of what an earlier version had not is what that version did.
        """
        if not isinstance(values, dict):
            raise InputError("no configuration")
        unknown = values.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown or "model" not in values:
            wrong = f"unknown fields {sorted(unknown)}" if unknown else "no field model"
            raise InputError(f"configuration of another version: {wrong}")
        values = cls().to_dict() | values
        paths = {name: values[name] and Path(values[name]) for name in PATHS}
        return cls(**values | paths | {"betas": tuple(values["betas"])})


PRESETS = {
    "paper": Config(),
    "released": Config(preset="released", backbone="resnext101_32x8d", variant="released"),
    # The best segmentation so far of subjects that are not test subjects (docs/results.md): without the guidance. No
    # flips, as in "quick".
    "modern": Config(
        preset="modern",
        backbone="resnet34",
        guidance=False,
        neutral_guide=True,
        fine_decoder=True,
        dice=1.0,
        schedule="one_cycle",
        flip_probability=0.0,
        rotation_degrees=15.0,
        affine_probability=0.5,
        intensity_probability=0.15,
        largest_component=True,
    ),
    # A result in minutes on two CPU cores and the sample, not a good network. No flips: they exchange left and right
    # kidney, which takes many epochs to learn. One step and small batches: more updates in the time.
    "quick": Config(
        preset="quick",
        backbone="resnet18",
        steps=1,
        epochs=10,
        batch_size=2,
        lr=5e-4,
        plateau_epochs=2,
        flip_probability=0.0,
    ),
}


def changeable(config: Config) -> set[str]:
    """What may change when a run is resumed; everything else would make it another run."""
    names = {"data", "out", "resume", "device", "workers", "eval_batch_size", "recompute", "max_skipped"}
    return names | ({"epochs"} if config.schedule == "plateau" else set())  # the length of a cycle is fixed


def parse_config(arguments: list[str] | None = None) -> Config:
    """The Config of a command line: the values of its --preset, or of the run that it resumes, changed by other flags.

    Exits with code 2 and a message for an unknown flag or a value of the wrong type or out of range; raises InputError
    for a run folder that is taken, and for a resumed run that would change what it is.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_known_args(arguments)[0]
    resume = given.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0  # torchrun --max-restarts
    if resume and given.out is None:
        given.out = next(reversed(run_folders()), None)
    earlier = given.out and read_run(given.out / "config.json")
    if earlier and not resume:
        raise InputError(f"{given.out}: holds a run already; add --resume to continue it, or choose another --out")
    if not earlier:
        return tyro.cli(Config, default=PRESETS.get(given.preset, PRESETS["paper"]), args=arguments)
    config = tyro.cli(Config, default=dataclasses.replace(earlier, out=given.out), args=arguments)
    before, now = earlier.to_dict(), config.to_dict()
    free = changeable(earlier).union(OF_THE_DATA)
    changed = [name for name in before if name not in free and before[name] != now[name]]
    if changed:
        difference = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in changed)
        raise InputError(f"{given.out}: is a run of another configuration ({difference}); choose another --out")
    return config


def read_run(path: Path) -> Config | None:
    """The configuration in a run's config.json, None where there is none. Raises InputError for an unreadable one."""
    if not path.exists():
        return None
    values = read_json(path)
    try:
        return Config.from_dict(values)
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: not a configuration of this version ({error}); choose another --out") from None
