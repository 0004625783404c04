"""Every hyperparameter: one field with its range, unit and source. Edit a value here, or give it as a flag of main.py.

A value is a group's (`config.loss.beta`), but has one flat name everywhere else: as a flag, in config.json, in PRESETS.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from utils import InputError, changes, read_json, run_folders


class Range(NamedTuple):
    """The numbers that a field takes: `low` to `high`, with both ends unless it is open there."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, number: float) -> bool:
        """Whether the finite `number` lies in it."""
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below and abs(number) < math.inf

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low}" if self.open_low else f"at least {self.low}"
        above = " (without it)" if self.open_low else ""
        below = " (without it)" if self.open_high else ""
        return f"between {self.low}{above} and {self.high}{below}"


Count = Annotated[int, Range(1)]
Probability = Annotated[float, Range(0, 1)]
Weight = Annotated[float, Range(0)]


class Group:
    """Fields that belong together. Raises InputError for a number outside of its field's range."""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            numbers = value if isinstance(value, tuple) else (value,)
            for allowed in _ranges(hint):
                if not all(isinstance(number, str) or allowed.holds(number) for number in numbers):
                    raise InputError(f"--{name} {value}: must be {allowed}")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields, with their ranges."""
    return get_type_hints(cls, include_extras=True)


def _ranges(hint: Any) -> Iterator[Range]:
    """The ranges anywhere in a type: of the number, of those in a tuple, of one of several types."""
    if get_origin(hint) is Annotated:
        yield from (item for item in hint.__metadata__ if isinstance(item, Range))
    elif get_origin(hint) is not Literal:
        for part in {*get_args(hint)}:
            yield from _ranges(part)


@dataclass(frozen=True)
class NetworkConfig(Group):
    """The network. Each takes the options that its constructor names; see models/__init__.py."""

    model: str = "ms_dual_guided"
    """ms_dual_guided; unet, attention_unet, danet, pan, daf; Table I's daf_pam, daf_cam, daf_dual; smp.NAME, an
    architecture of segmentation_models.pytorch; or your own, package.module:Class(key=value): docs/extending.md."""
    channels: Count = 1
    """Image channels. main.py sets it to what the data set has."""
    classes: Annotated[int, Range(2)] = 5
    """Classes with the background; CHAOS has five. main.py sets it to what the data set has."""
    backbone: str = "resnext101_32x4d"
    """resnet18, 34, 50, 101 or 152, wide_resnet50_2 or 101_2, resnext50_32x4d, resnext101_32x4d, 32x8d or 64x4d;
    timm.NAME, an encoder of timm; with smp.NAME an encoder of that library. The paper says ResNet-101; its parameter
    counts are ResNeXt-101 32x4d's."""
    pretrained: str = "none"
    """What the backbone starts from: none, imagenet (weights that its library downloads), or a file with a state dict.
    The paper trains from scratch."""
    variant: Literal["paper", "released"] = "paper"
    """Where paper and released code differ: CAM by Eq. 4 and a guiding convolution shared by the scales, or neither."""
    steps: Annotated[int, Range(1, 50)] = 2
    """Refinement steps. Table II has 1, 2, 3 and 5."""
    scales: Literal["quarter", "native"] = "quarter"
    """Resolution at which the scales are refined: all at a quarter of the image's, as in the paper; or each at its own
    (1/4, 1/8, 1/16, 1/32), which takes a fraction of the time."""
    key_pooling: Annotated[int, Range(1, 64)] = 1
    """Position attention at 1/4 looks at the means over squares of this side instead of at each position; at native
    scales, coarser ones pool by half as much each. The paper has none."""
    semantic_channels: Annotated[int, Range(1, 4096)] = 256
    """Channels of the semantic module's first stage; the next has twice as many. The paper has 256."""
    norm_by_scale: bool = False
    """The semantic module has a batch normalization for each scale. The released code has one for all, whose running
    statistics fit no scale, so that evaluation differs from training."""
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
    """Supervise the raw maps and the maps of each step but the first, of a single step its own; without it the last
    step's alone."""
    fine_decoder: bool = False
    """Predict by a decoder from the refined maps and Res-1 to the image's own size, supervised beside the other maps.
    The released code predicts by the mean of the last step's maps, at a quarter of it."""


@dataclass(frozen=True)
class LossConfig(Group):
    """L = alpha * segmentation + beta * guided + gamma * reconstruction (Eq. 10, 7, 6)."""

    alpha: Annotated[float, Range(0, open_low=True)] = 1.0
    """Weight of the segmentation losses of all maps: cross-entropy, and Dice loss where --dice is not 0."""
    beta: Weight = 0.25
    """Weight of the distances between the latent features of successive steps."""
    gamma: Weight = 0.1
    """Weight of the reconstruction errors of the semantic module."""
    dice: Weight = 0.0
    """Weight of a soft Dice loss beside each map's cross-entropy. The paper has none."""
    loss: str = ""
    """What replaces each map's cross-entropy: package.module:Class(key=value), of yours or of a library."""


@dataclass(frozen=True)
class OptimizationConfig(Group):
    """Adam, its learning rate and how long it works."""

    epochs: Count = 500
    """Passes over the training slices."""
    batch_size: Count = 8
    """Slices in a training iteration, of all processes together."""
    lr: Annotated[float, Range(0, open_low=True)] = 1e-3
    """Learning rate at the start; with one_cycle the largest."""
    betas: tuple[Annotated[float, Range(0, 1, open_high=True)], Annotated[float, Range(0, 1, open_high=True)]] = (
        0.9,
        0.99,
    )
    """Decay rates of the first and second moment."""
    schedule: Literal["plateau", "one_cycle"] = "plateau"
    """plateau lowers the rate when the validation stands still; one_cycle raises it from lr / 25 in the first 30 % of
    the iterations and lowers it to nearly 0 until the last one, along cosines."""
    plateau_epochs: Count = 50
    """Validations without a better score after which the learning rate falls."""
    plateau_factor: Annotated[float, Range(0, 1, open_low=True)] = 0.5
    """What the learning rate is multiplied by then."""
    init: Path | None = None
    """File to start from: a checkpoint, or a state dict of any program. Weights that fit are taken, see
    docs/training.md; the others start anew."""
    freeze_backbone: Annotated[int, Range(0)] = 0
    """Epochs at the start in which the backbone's weights and statistics stay as they are."""
    max_skipped: Annotated[int, Range(0)] = 10
    """Iterations of an epoch whose loss or gradient is not finite that are left out; at one more the training stops."""


@dataclass(frozen=True)
class AugmentationConfig(Group):
    """What is drawn anew for image and mask of each training slice; see data/augment.py."""

    flip_probability: Probability = 0.5
    """Chance of a vertical flip and, drawn apart, of a horizontal flip."""
    mirror: str = ""
    """Classes that a left-right flip exchanges, such as "right kidney=left kidney, right lung=left lung", instead of
    those of dataset.json. The paper exchanges none."""
    mirror_axis: Literal["auto", "horizontal", "vertical"] = "auto"
    """Axis of slices that runs from left to right: horizontal, where columns do. auto: what dataset.json says as
    direction of each subject, or as mirror_axis."""
    rotation_probability: Probability = 0.5
    """Chance of a rotation."""
    rotation_degrees: Annotated[float, Range(0, 180)] = 30.0
    """Rotations are uniform between minus and plus this angle, in degrees."""
    affine_probability: Probability = 0.0
    """Chance of another size (by 0.8 to 1.25), aspect (each side by up to 9 %, in opposite directions), shear (up to
    0.1) and position (by up to a tenth of the sides before all this), drawn together. The paper has none."""
    intensity_probability: Probability = 0.0
    """Chance of each change of the image: noise, blur, brightness, contrast, low resolution, bias field, gamma. The
    paper has none."""


@dataclass(frozen=True)
class EvaluationConfig(Group):
    """Validation and test."""

    largest_component: bool = False
    """Keep only the largest connected piece of each class in a subject's segmentation."""
    eval_batch_size: Count = 8
    """Slices in a forward pass; changes speed and memory, not results."""


@dataclass(frozen=True)
class MachineConfig(Group):
    """The seed, and what it is computed on."""

    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of the initial weights, the order of the slices and the augmentation."""
    deterministic: bool = False
    """On a GPU, use only kernels that give the same result every time, where PyTorch has them: slower. On the CPU they
    always do."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is the first visible GPU, else the CPU."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Autocast to bfloat16 or float16, with attention energies and losses in float32; float16 scales the loss. auto:
    bf16 where the device computes in it, else fp16 on a GPU that has tensor cores, else off."""
    sync_batch_norm: bool = False
    """With torchrun: batch normalization over the slices of all processes, as if one process had the whole batch."""
    recompute: bool = False
    """Keep fewer activations and compute them again in the backward pass: less memory, more time, the same results."""
    workers: Annotated[int, Range(0)] | Literal["auto"] = "auto"
    """Processes that load and augment slices; 0 does it in the training process. auto: beside a GPU one less than the
    cores, eight at most; none on the CPU, whose cores and memory the training needs. The results are the same."""


@dataclass(frozen=True)
class Config:
    """Guided multi-scale attention segmentation (Sinha & Dolz, JBHI 2020). The defaults are the paper's protocol."""

    preset: Literal["paper", "released", "quick", "modern"] = "paper"
    """Named set of values to start from; the other flags change single values of it."""
    data: Path = Path("dataset")
    """Data set: train, val and test, each with Img and GT; see docs/data.md."""
    out: Path | None = None
    """Run folder; by default the next free runs/NNN-PRESET."""
    resume: bool = False
    """Continue the run in --out (without --out: the newest in runs/), or start one where there is none. Flags that are
    left out keep its values."""
    split_file: Path | None = None
    """Split the subjects in --data by this file, {"train": ["1", "2"], "val": ["3"], "test": ["4"]}, not by folder."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)

    @classmethod
    def of(cls, **values: Any) -> Config:
        """The default values, with others for the flat names in `values`."""
        return cls().change(**values)

    def change(self, **values: Any) -> Config:
        """The same with other `values`, by their flat names. Raises InputError for what a field cannot be."""
        changed: dict[str, Any] = {}
        for name, value in values.items():
            if name not in GROUP_OF:
                raise InputError(f"{name}: is no field of the configuration; correct the name")
            if hasattr(value, "item"):  # a number of NumPy
                value = value.item()
            if not _fits(str(value) if isinstance(value, Path) else value, HINTS[name]):
                raise InputError(f"{name} {value!r}: is of another kind than the field, or too long")
            value = tuple(value) if isinstance(value, list) else value
            group = GROUP_OF[name]
            if group is None:
                changed[name] = value
            else:
                changed[group] = dataclasses.replace(changed.get(group, getattr(self, group)), **{name: value})
        return dataclasses.replace(self, **changed)

    def values(self) -> dict[str, Any]:
        """Flat name -> value."""
        return {
            name: getattr(self, name) if group is None else getattr(getattr(self, group), name)
            for name, group in GROUP_OF.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Flat name -> value as JSON can hold it."""
        plain = {}
        for name, value in self.values().items():
            plain[name] = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        return plain

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`; a field that is missing gets its default.

        Raises InputError for an unknown field, and for a value of another kind or outside of its range.
        """
        if not isinstance(values, dict):
            raise InputError("no configuration")
        unknown = values.keys() - GROUP_OF.keys()
        if unknown or "model" not in values:
            wrong = f"unknown fields {sorted(unknown)}" if unknown else "no field model"
            raise InputError(f"configuration of another version: {wrong}")
        values = cls().to_dict() | values
        for name, hint in HINTS.items():
            if not _fits(values[name], hint):
                raise InputError(f"{name}: is of another kind, or too long")
        paths = {name: Path(values[name]) for name in ("data", "out", "split_file", "init") if values[name] is not None}
        return cls.of(**values | paths | {"betas": tuple(values["betas"])})


GROUPS = {
    "network": NetworkConfig,
    "loss": LossConfig,
    "optimization": OptimizationConfig,
    "augmentation": AugmentationConfig,
    "evaluation": EvaluationConfig,
    "machine": MachineConfig,
}
# Flat name -> its group in Config, None for the fields of Config itself.
GROUP_OF: dict[str, str | None] = {item.name: None for item in dataclasses.fields(Config) if item.name not in GROUPS}
GROUP_OF |= {item.name: name for name, group in GROUPS.items() for item in dataclasses.fields(group)}

HINTS = {name: _hints(GROUPS.get(group, Config))[name] for name, group in GROUP_OF.items()}
LONGEST_TEXT = 4096  # characters


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value as JSON holds it is of a field's type, whatever its range."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if hint in (str, Path):
        return isinstance(value, str) and len(value) <= LONGEST_TEXT
    if type(value) is int and value.bit_length() > 64:
        return False
    return type(value) is hint or (hint is float and type(value) is int)


# Each scale refined at its own resolution, by attention and a semantic module that are cheap there.
NATIVE = {"scales": "native", "key_pooling": 4, "semantic_channels": 32}

PRESETS = {
    "paper": Config(),
    "released": Config.of(preset="released", backbone="resnext101_32x8d", variant="released"),
    # The best segmentation so far of subjects that are not test subjects (docs/results.md): without the guidance. No
    # flips, as in "quick".
    "modern": Config.of(
        preset="modern",
        backbone="resnet34",
        **NATIVE,
        guidance=False,
        norm_by_scale=True,
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
    # A result in minutes on two CPU cores and the sample, not a good network: one step at native scales. No flips: they
    # exchange left and right kidney, which takes many epochs to learn.
    "quick": Config.of(
        preset="quick",
        backbone="resnet18",
        steps=1,
        **NATIVE,
        norm_by_scale=True,
        neutral_guide=True,
        fine_decoder=True,
        dice=1.0,
        epochs=11,
        batch_size=4,
        lr=2e-3,
        schedule="one_cycle",
        flip_probability=0.0,
        largest_component=True,
    ),
}

OF_THE_DATA = {"channels", "classes"}  # main.py sets them, whatever is given


def changeable(config: Config) -> set[str]:
    """What may change when a run is resumed; everything else would make it another run."""
    names = {"data", "out", "resume", "device", "workers", "eval_batch_size", "recompute", "max_skipped"}
    if config.optimization.schedule == "plateau":  # the length of a cycle is fixed
        names.add("epochs")
    return names


def differences(before: Config, now: Config, names: set[str]) -> str:
    """What has changed of the fields `names`, as "lr 0.001 -> 0.01, ..."; an empty text where nothing has."""
    old = {name: value for name, value in before.to_dict().items() if name in names}
    return changes(old, now.to_dict())


def parse_config(arguments: list[str] | None = None) -> Config:
    """The Config of a command line: the values of its --preset, or of the run that it resumes, changed by other flags.

    Exits with code 2 and a message for an unknown flag or a value of the wrong type; raises InputError for a value out
    of its range, for a run folder that is taken, and for a resumed run that would change what it is.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path)
    given = parser.parse_known_args(arguments)[0]
    restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))  # as torchrun sets it
    if restarts and given.out is None:
        raise InputError("--out: must be given with torchrun --max-restarts, so that a restart finds its run")
    resume = given.resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if resume and given.out is None:
        given.out = next((run for run in reversed(run_folders()) if (run / "config.json").exists()), None)
    earlier = given.out and read_run(given.out / "config.json")
    if not earlier:
        return _parse(PRESETS.get(given.preset, PRESETS["paper"]), arguments)
    if not resume:
        raise InputError(f"{given.out}: holds a run already; add --resume to continue it, or choose another --out")
    config = _parse(dataclasses.replace(earlier, out=given.out), arguments)
    changed = differences(earlier, config, GROUP_OF.keys() - changeable(earlier) - OF_THE_DATA)
    if changed:
        raise InputError(f"{given.out}: is a run of another configuration ({changed}); choose another --out")
    return config


def _parse(default: Config, arguments: list[str] | None) -> Config:
    import cli

    return cli.parse(Config, Config.__doc__, arguments, default=default)


def read_run(path: Path) -> Config | None:
    """The configuration in a run's config.json, None where there is none. Raises InputError for an unreadable one."""
    if not path.exists():
        return None
    values = read_json(path)
    try:
        return Config.from_dict(values)
    except (TypeError, InputError) as error:
        raise InputError(f"{path}: not a configuration of this version ({error}); choose another --out") from None
