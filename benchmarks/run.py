"""How fast and how small: `python benchmarks/run.py` compares with the plain formulation (plain.py) on this machine.

Each measurement runs in a process of its own, plain and fast in turns. Prints a table; writes it, all numbers and two
plots to --out. One measurement: `python benchmarks/run.py --case '{"case": "step", "size": 512, "batch": 8}'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plain
from config import PRESETS, AugmentationConfig, EvaluationConfig, MachineConfig, OptimizationConfig
from data.batches import ShuffledBatches, read_batches, slice_loader
from data.folder import CHAOS_LABELS, open_data
from inference.segmentation import segment_subjects, segment_volume
from losses import GuidedLoss
from metrics import dice, score_subject
from models import build_model
from training.device import Machine, peak_memory, without_denormals
from training.environment import processor_name
from training.epoch import Epoch, Training, train_one_epoch
from training.optimization import Optimization
from training.setup import training_loader
from training.signals import StopSignal
from utils import write_json, write_text

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MACHINE = Machine.of(MachineConfig(device=DEVICE.type))
BATCH = 8 if DEVICE.type == "cuda" else 2
ITERATIONS = 10 if DEVICE.type == "cuda" else 1  # timed together: a GPU works behind the host
SIZES, STEPS = (128, 256, 384, 512), (1, 2, 3, 5)
CLASSES = 5
CHANNELS_LAST = {"device": DEVICE, "memory_format": torch.channels_last}


# ---------------------------------------------------------------- measurements, each in a process of its own


def measure_step(way: str, size: int = 256, batch: int = BATCH, steps: int = 2, repeats: int = 5) -> dict[str, Any]:
    """Seconds of a training step, `repeats` times after three, and the peak of memory in GiB without the program."""
    before = resident()
    run_steps = _training_steps(way, size, batch, steps, ITERATIONS)
    for _ in range(3):
        run_steps()
    seconds = [timed(run_steps) / ITERATIONS for _ in range(repeats)]
    return {"seconds": seconds, "memory_gib": peak(before)}


def measure_inference(way: str, slices: int = 40, size: int = 256, batch: int = BATCH) -> dict[str, Any]:
    """Seconds for the class indices of a volume with one forward pass of each slice, three times over."""
    before = resident()
    model = _network(way).eval()
    volume = np.random.default_rng(0).random((1, slices, size, size), np.float32)

    def run(images: np.ndarray) -> None:
        if way == "fast":
            segment_volume([model], images, batch, MACHINE, flips=False).argmax(0)
            return
        for k in range(images.shape[1]):
            plain.segment(model, torch.from_numpy(images[:, k : k + 1]).to(DEVICE))

    run(volume[:, :batch])
    return {"seconds": [timed(lambda: run(volume)) for _ in range(3)], "memory_gib": peak(before)}


def measure_evaluation(way: str, repeats: int = 3) -> dict[str, Any]:
    """Seconds to score one subject of 36 x 256 x 256 voxels and four classes in voxels and mm, and the scores."""
    target = _labels(36, 256)
    prediction = ndimage.shift(target, (0, 3, -2), order=0)
    spacing = (7.7, 1.5, 1.5)
    names = [str(k) for k in range(CLASSES)]
    scores: list[Any] = []

    def run() -> None:
        if way == "plain":
            scores[:] = plain.score(prediction, target, range(1, CLASSES), spacing)
        else:
            scores[:] = score_subject(prediction, target, names, spacing)

    return {"seconds": [timed(run) for _ in range(repeats)], "scores": scores}


def measure_epoch(way: str, size: int = 256, slices: int = 4 * BATCH) -> dict[str, Any]:
    """Seconds of an epoch of `slices` slices after another: load, augment, train, validate one subject in 3D."""
    with tempfile.TemporaryDirectory() as name:
        _write_data(Path(name), size, slices)
        data = open_data(Path(name))
        train_set, val_set = data.dataset("train", AugmentationConfig()), data.dataset("val")
        workers = 0 if way == "plain" else MACHINE.workers
        batches = ShuffledBatches(train_set, BATCH, seed=0)
        loader = slice_loader(train_set, batches, workers, MACHINE.pin_memory)
        model = _network(way)
        optimization = Optimization(model, OptimizationConfig(max_skipped=0), len(batches))
        plain_optimizer = torch.optim.Adam(model.parameters(), 1e-3, (0.9, 0.99))
        waiting: list[float] = []

        def plain_way() -> None:
            model.train()
            for image, target in read_batches(loader):
                plain.train_step(model, plain_optimizer, image.to(DEVICE), target.to(DEVICE))
            subjects = {}
            for subject, indices in val_set.subjects().items():
                pairs = [val_set[index] for index in indices]
                subjects[subject] = [(image[None].to(DEVICE), target.byte().numpy()) for image, target in pairs]
            plain.evaluate(model, subjects, CLASSES, Path(name))

        def fast_way() -> None:
            _train(model, _Watched(loader, waiting), optimization)
            for volume in segment_subjects(model, val_set, list(val_set.subjects()), EvaluationConfig(), MACHINE):
                for k in range(1, CLASSES):
                    dice(volume.prediction == k, volume.target == k)

        run = plain_way if way == "plain" else fast_way
        run()
        waiting.clear()
        seconds = timed(run)
    # The first batch is there when the workers have started, once an epoch; what counts is whether steps wait.
    return {"seconds": [seconds], "waiting": sum(waiting[1:]), "start": sum(waiting[:1])}


def measure_loader(size: int = 256, slices: int = 640) -> dict[str, Any]:
    """Slices a second that the loader gives, by recipe, from its second batch on."""
    rates: dict[str, Any] = {"workers": MACHINE.workers}
    with tempfile.TemporaryDirectory() as name:
        _write_data(Path(name), size, slices)
        data = open_data(Path(name))
        for preset in ("paper", "modern"):
            config = PRESETS[preset]
            loader = training_loader(data.dataset("train", config.augmentation), config, MACHINE)
            batches = read_batches(loader)
            next(batches)
            began = time.perf_counter()
            count = sum(len(image) for image, _ in batches)
            rates[preset] = count / (time.perf_counter() - began)
    return rates


def measure_rate(device: torch.device = DEVICE) -> dict[str, float]:
    """FLOP/s of a large matrix product, the roof that a step is held against."""
    size = 8192 if device.type == "cuda" else 2048
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device, dtype=dtype)
        a @ a
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / median(timed(lambda a=a: a @ a) for _ in range(9))
    return rates


def measure_profile(top: int = 10) -> list[tuple[str, float]]:
    """The operators with the largest share of a fast training step."""
    step = _training_steps("fast", 256, BATCH, 2, iterations=1)
    for _ in range(3):
        step()
    with torch.profiler.profile() as profiler:
        step()
    field = f"self_{'device' if DEVICE.type == 'cuda' else 'cpu'}_time_total"
    times = {event.key: getattr(event, field) for event in profiler.key_averages()}
    total = sum(times.values())
    return sorted(((name, value / total) for name, value in times.items()), key=lambda pair: -pair[1])[:top]


CASES: dict[str, Callable[..., Any]] = {
    "step": measure_step,
    "inference": measure_inference,
    "evaluation": measure_evaluation,
    "epoch": measure_epoch,
    "loader": measure_loader,
    "rate": measure_rate,
    "profile": measure_profile,
}


# ---------------------------------------------------------------- what they are made of


def _network(way: str, steps: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(PRESETS["released"].change(steps=steps))
    return plain.make_plain(model).to(DEVICE) if way == "plain" else model.to(**CHANNELS_LAST)


def _training_steps(way: str, size: int, batch: int, steps: int, iterations: int) -> Callable[[], None]:
    """So many steps as the plain loop makes them, or as `train_one_epoch` does."""
    model = _network(way, steps).train()
    image = torch.rand(batch, 1, size, size).to(DEVICE)
    target = torch.randint(0, CLASSES, (batch, size, size), device=DEVICE)
    if way == "plain":
        optimizer = torch.optim.Adam(model.parameters(), 1e-3, (0.9, 0.99))

        def plain_steps() -> None:
            for _ in range(iterations):
                plain.train_step(model, optimizer, image, target)

        return plain_steps
    slices = _InMemory(list(zip(image.cpu(), target.cpu(), strict=True)) * iterations)
    loader = slice_loader(slices, ShuffledBatches(slices, batch, seed=0))
    optimization = Optimization(model, OptimizationConfig(max_skipped=0), len(loader))
    return lambda: _train(model, loader, optimization)


def _train(model: nn.Module, loader: Any, optimization: Optimization) -> None:
    """An epoch as main.py trains it."""
    training = Training(model, loader, GuidedLoss(), optimization, MACHINE, StopSignal())
    train_one_epoch(training, Epoch(0), title="")


def timed(run: Callable[[], Any]) -> float:
    _synchronize()
    began = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak(before: int) -> float:
    """GiB at the most, of a GPU or of this process without the bytes that it had `before`."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return peak_memory(DEVICE) - before / 2**30


def _labels(slices: int, size: int) -> np.ndarray:
    """Four ellipsoids of about the place and size of liver, kidneys and spleen, uint8 (slices, size, size)."""
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in (slices, size, size)), indexing="ij")
    organs = [((0, -0.2, -0.4), (0.7, 0.4, 0.4)), ((-0.2, 0.3, -0.3), (0.4, 0.14, 0.12)),
              ((-0.1, 0.3, 0.3), (0.4, 0.14, 0.12)), ((0.1, 0, 0.6), (0.4, 0.2, 0.16))]  # fmt: skip
    labels = np.zeros((slices, size, size), np.uint8)
    for k, (center, radii) in enumerate(organs, 1):
        distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(grid, center, radii, strict=True))
        labels[distance < 1] = k
    return labels


def _write_data(root: Path, size: int, slices: int) -> None:
    """`slices` slices of one subject to train on, and of another to validate on."""
    labels = _labels(slices, size)
    codes = np.array(list(CHAOS_LABELS.values()), np.uint8)
    for subject, split in enumerate(("train", "val", "test")):
        for kind in ("Img", "GT"):
            (root / split / kind).mkdir(parents=True)
        for k, label in enumerate(labels):
            noise = np.random.default_rng(k).integers(0, 50, label.shape, np.uint8)
            Image.fromarray(50 * label + noise).save(root / split / "Img" / f"Subj_{subject}slice_{k}.png")
            Image.fromarray(codes[label]).save(root / split / "GT" / f"Subj_{subject}slice_{k}.png")


class _InMemory(list):
    """Pairs of image and target, as a `SliceDataset` gives them."""

    epoch = 0


class _Watched:
    """A loader, and the seconds that each of its batches was waited for."""

    def __init__(self, loader: DataLoader, waiting: list[float]) -> None:
        self.loader, self.waiting = loader, waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches, began = iter(self.loader), time.perf_counter()
        for batch in batches:
            self.waiting.append(time.perf_counter() - began)
            yield batch
            began = time.perf_counter()


# ---------------------------------------------------------------- the report


def in_a_process(case: str, **options: Any) -> Any:
    """The result of one measurement."""
    command = [sys.executable, __file__, "--case", json.dumps({"case": case, **options})]
    print(f"{case} {options or ''}", file=sys.stderr, flush=True)
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    print(result, file=sys.stderr, flush=True)  # so that no measurement is lost where a later one fails
    return json.loads(result)


def both(case: str, turns: int = 2) -> dict[str, Any]:
    """Plain and fast in turns: all seconds, their medians, the worst of the peaks, and the ratio of the medians."""
    results: dict[str, Any] = {"plain": [], "fast": []}
    for _ in range(turns):
        for way, found in results.items():
            found.append(in_a_process(case, way=way))
    summary: dict[str, Any] = {}
    for way, found in results.items():
        seconds = [value for result in found for value in result["seconds"]]
        summary[way] = {**found[-1], "seconds": seconds, "median": median(seconds)}
        if "memory_gib" in found[0]:
            summary[way]["memory_gib"] = max(result["memory_gib"] for result in found)
    summary["speedup"] = summary["plain"]["median"] / summary["fast"]["median"]
    if "memory_gib" in summary["fast"]:
        summary["memory_ratio"] = summary["fast"]["memory_gib"] / summary["plain"]["memory_gib"]
    return summary


def flops_of_a_step() -> int:
    """Of the plain formulation, whose products are those of the mathematics, forwards and backwards."""
    with torch.device("meta"):
        model = plain.make_plain(build_model(PRESETS["released"])).train()
        image = torch.empty(BATCH, 1, 256, 256)
        target = torch.empty(BATCH, 256, 256, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        plain.plain_loss(model(image), target)[0].backward()
    return counter.get_total_flops()


def machine() -> dict[str, str]:
    """What the numbers hold for."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else processor_name()
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": name, "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads()), **versions}


def measure_all() -> dict[str, Any]:
    """Every measurement."""
    report: dict[str, Any] = {"machine": machine(), "batch": BATCH, "flops_of_a_step": flops_of_a_step()}
    report["rate"] = in_a_process("rate")
    report["step"] = both("step")
    cases = ["inference", "epoch"]  # minutes, each of them
    if importlib.util.find_spec("medpy"):  # which has to be built where it is installed
        cases.append("evaluation")
    for case in cases:
        report[case] = both(case, turns=1)
    costs = {"size": [{"size": size} for size in SIZES], "steps": [{"steps": steps} for steps in STEPS]}
    batch = max(1, BATCH // 2)
    for name, cases in costs.items():
        report[f"cost_by_{name}"] = [
            case | in_a_process("step", way="fast", batch=batch, repeats=3, **case) for case in cases
        ]
    report["loader"] = in_a_process("loader", **({} if DEVICE.type == "cuda" else {"slices": 64}))
    report["profile"] = in_a_process("profile")
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report as tables."""
    on = report["machine"]
    head = f"{on['device']}, {on['threads']} threads, PyTorch {on['torch']}, Python {on['python']}"
    titles = {
        "step": f"training step, batch {report['batch']}, 256 x 256",
        "inference": "inference of 40 slices, one pass each",
        "evaluation": "all metrics of a subject",
        "epoch": "an epoch with validation in 3D",
    }
    lines = [head, "", "| what | plain | fast | faster | memory |", "|---|---:|---:|---:|---:|"]
    for case, title in titles.items():
        if case not in report:
            continue
        found = report[case]
        cells = [_spread(found[way]["seconds"]) for way in ("plain", "fast")]
        memory = ""
        if "memory_ratio" in found:
            plain_gib, fast_gib = (found[way]["memory_gib"] for way in ("plain", "fast"))
            memory = f"{fast_gib:.2f} GiB instead of {plain_gib:.2f}, {found['memory_ratio']:.2f}x"
        lines.append(f"| {title} | {cells[0]} | {cells[1]} | {found['speedup']:.1f}x | {memory} |")
        if case == "inference":
            thrice, once = sum(found["plain"]["seconds"]), found["fast"]["median"]
            title = "inference, three plain passes as in the released code"
            lines.append(f"| {title} | {thrice:.2f} s | {once:.2f} s | {thrice / once:.1f}x | |")
    rate = report["flops_of_a_step"] / report["step"]["fast"]["median"]
    roofs = ", ".join(f"{rate / roof:.0%} of {roof / 1e9:,.0f} in {name}" for name, roof in report["rate"].items())
    epoch = report["epoch"]["fast"]
    lines += [
        "",
        f"A step is {report['flops_of_a_step'] / 1e12:.2f} TFLOP: {rate / 1e9:,.0f} GFLOP/s, which is {roofs} "
        "(a large matrix product).",
        f"Steps wait for data {epoch['waiting'] / epoch['seconds'][0]:.1%} of the time of an epoch, the first one "
        f"{epoch['start']:.2f} s.",
    ]
    loader = report["loader"]
    lines.append(
        f"The loader gives {loader['paper']:,.0f} slices a second (paper) and {loader['modern']:,.0f} (modern) with "
        f"{loader['workers']} processes; a step takes {report['batch'] / report['step']['fast']['median']:,.0f}."
    )
    if "evaluation" in report:
        lines.append(f"Metrics: largest difference to medpy {_difference(report['evaluation']):.1e}.")
    for name in ("size", "steps"):
        lines += ["", f"| {name} | seconds | memory |", "|---:|---:|---:|"]
        lines += [
            f"| {row[name]} | {_spread(row['seconds'])} | {row['memory_gib']:.2f} GiB |"
            for row in report[f"cost_by_{name}"]
        ]
    lines += ["", "| operator | share of a step |", "|---|---:|"]
    lines += [f"| {name} | {share:.1%} |" for name, share in report["profile"]]
    return "\n".join(lines) + "\n"


def _spread(seconds: list[float]) -> str:
    middle = f"{median(seconds):.2f} s"
    return f"{middle} ({min(seconds):.2f} to {max(seconds):.2f})" if len(seconds) > 1 else middle


def _difference(evaluation: dict[str, Any]) -> float:
    pairs = zip(evaluation["plain"]["scores"], evaluation["fast"]["scores"], strict=True)
    return max(abs(value - ours[key]) for theirs, ours in pairs for key, value in theirs.items())


def plot(report: dict[str, Any], path: Path) -> None:
    """Seconds and memory of a fast step over the size of the slices and the number of steps."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for axis, name, label in zip(
        axes, ("size", "steps"), ("side of the slices, pixels", "refinement steps"), strict=True
    ):
        rows = report[f"cost_by_{name}"]
        at = [row[name] for row in rows]
        axis.plot(at, [median(row["seconds"]) for row in rows], "o-", color="#0072B2")
        axis.set(xlabel=label, xticks=at, ylim=(0, None))
        axis.set_ylabel("seconds", color="#0072B2")
        other = axis.twinx()
        other.plot(at, [row["memory_gib"] for row in rows], "s--", color="#D55E00")
        other.set_ylabel("GiB", color="#D55E00")
        other.set_ylim(0, None)
    figure.suptitle(f"A training step, batch {max(1, BATCH // 2)}: time (line) and memory (dashes)", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--case", type=json.loads, help="one measurement and its options, as JSON")
    options = parser.parse_args()
    if options.case:
        case = CASES[options.case.pop("case")]
        with without_denormals():
            print(json.dumps(case(**options.case)))
        return
    report = measure_all()
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / f"{DEVICE.type}.json", report)
    write_text(options.out / f"{DEVICE.type}.md", markdown(report))
    plot(report, options.out / f"{DEVICE.type}.png")
    print(markdown(report))


if __name__ == "__main__":
    main()
