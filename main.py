"""Train MS-Dual-Guided on slices, validate every epoch and score the test subjects in 3D.

python main.py                             the paper's protocol on dataset/
python main.py --preset quick              a result in minutes, also on a CPU
torchrun --nproc_per_node=4 main.py ...    on four GPUs
python main.py --help                      every hyperparameter (config.py)
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from checkpoint import StopSignal, claim_folder, load_checkpoint, load_newest, save_checkpoint, unlock_folder
from config import Config, changeable, parse_config
from data.augment import Augmentation
from data.folder import open_data
from data.slices import ShuffledBatches, SliceDataset, collate
from data.splits import read_split
from data.volumes import Volume, array_spacing, write_nifti
from distributed import (
    add_up,
    distribute,
    from_first,
    gather,
    process_group,
    rank,
    share_statistics,
    wait_for_all,
    world,
)
from engine import Epoch, segment_subjects, train_one_epoch
from figures import overlays, save_overview
from losses import GuidedLoss
from memory import advice, available_bytes, explain_out_of_memory, step_memory
from metrics import dice, format_table, score_subject, summarize
from models import build_model, recompute_activations, synchronize_batch_norm
from optimization import Optimization
from report import Shown, environment, write_report
from terminal import device_name, epoch_line, start_up
from utils import (
    InputError,
    loader_workers,
    peak_memory,
    seed_everything,
    select_device,
    use_bfloat16,
    use_deterministic_kernels,
    user_errors,
    write_csv,
    write_json,
)


def main(config: Config, stop: StopSignal | None = None) -> None:
    # ---------------------------------------------------------------- set-up
    stop = stop or StopSignal()
    if config.batch_size < world():
        raise InputError(f"--batch_size {config.batch_size}: fewer slices than processes; give {world()} or more")
    device = select_device(config.device)
    bfloat16 = use_bfloat16(config.amp, device)
    workers = loader_workers(config.workers, device)
    if config.deterministic and device.type == "cuda":
        use_deterministic_kernels()
    seed_everything(config.seed)

    # ---------------------------------------------------------------- data
    data = from_first(lambda: open_data(config.data, subjects=config.split_file and read_split(config.split_file)))
    classes = data.labels.names
    config = replace(config, channels=data.channels, classes=len(classes))
    augmentation = Augmentation(
        flip_probability=config.flip_probability,
        rotation_probability=config.rotation_probability,
        rotation_degrees=config.rotation_degrees,
        affine_probability=config.affine_probability,
        intensity_probability=config.intensity_probability,
    )
    train_set = data.dataset("train", augmentation, config.seed)
    val_set, test_set = (data.dataset(split) for split in ("val", "test"))
    batches = ShuffledBatches(train_set, config.batch_size, config.seed, rank(), world())
    pin = device.type == "cuda"
    loader = DataLoader(train_set, batch_sampler=batches, num_workers=workers, collate_fn=collate, pin_memory=pin)

    # ---------------------------------------------------------------- model
    free = available_bytes(device) // (world() if device.type == "cpu" else 1)
    # The weights of a run that goes on need no others to start from.
    going_on = config.out is not None and any((config.out / name).exists() for name in ("last.pt", "previous.pt"))
    network = build_model(replace(config, pretrained=config.pretrained and not going_on))
    network.to(device, memory_format=torch.channels_last)
    if config.recompute:
        recompute_activations(network)
    if config.sync_batch_norm and world() > 1:
        synchronize_batch_norm(network)
    model = distribute(network, device)
    criterion = GuidedLoss(config.alpha, config.beta, config.gamma, config.dice)
    optimization = Optimization(network, config, len(batches))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    needed = step_memory(config, data.size, bfloat16).of(-(-config.batch_size // world()))

    # ---------------------------------------------------------------- run folder
    out = from_first(lambda: claim_folder(config.out, config.preset))
    labels = dict(zip(*data.labels, strict=True))
    of_data = {"labels": labels, "values": list(data.values), "preparation": data.preparation}
    of_data |= {"slices": train_set.fingerprint(), "evaluation": [val_set.fingerprint(), test_set.fingerprint()]}
    epoch, best, log = Epoch(0), -1.0, []
    last = load_newest(out, device)
    if last:
        check_same_run(last, config, of_data)
        network.load_state_dict(last["model"])
        optimization.load_state_dict(last["optimization"])
        epoch, best, log = Epoch(**last["epoch"]), last["best"], last["log"]
    resumed = f" (resumed after epoch {len(log)}" + f", step {epoch.step}" * (epoch.step > 0) + ")" if last else ""
    last = None  # frees its copy of the weights
    facts = {
        "network": f"{config.network}, {parameters:,} parameters",
        "device": device_name(device, bfloat16, world()),
        "memory": f"a training step takes about {needed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free",
        "results": f"{out}{resumed}",
    }
    print(start_up(config, data, facts))
    for note in (*data.notes, *config.notes()):
        print(f"note: {note}")
    if needed > free:
        print(f"warning: the memory may not suffice; {advice(config, data.size, bfloat16, free, world())}")
    if rank() == 0:
        (out / "test.json").unlink(missing_ok=True)  # marks a finished run
        write_json(out / "config.json", config.to_dict())
        write_json(out / "environment.json", environment(device))
        write_csv(out / "log.csv", log)
        curves = SummaryWriter(out / "tensorboard", purge_step=len(log) + 1)

    def save(weights: dict[str, Any]) -> None:
        """Write everything that goes on from here to last.pt."""
        states = {"optimization": optimization.state_dict()}
        position = {"epoch": epoch.to_dict(), "best": best, "log": log}
        save_checkpoint(out / "last.pt", weights | states | position, previous=out / "previous.pt")

    def segment(model: nn.Module, dataset: SliceDataset, title: str) -> list[Volume]:
        """Segment all subjects of `dataset`, each in one of the processes."""
        size, clean = config.eval_batch_size, config.largest_component
        return gather(list(segment_subjects(model, dataset, size, workers, device, bfloat16, title, clean)))

    # ---------------------------------------------------------------- training
    stop.defer = True
    while epoch.number < config.epochs:
        began = time.monotonic() - epoch.seconds
        if epoch.step == 0:
            epoch.lr = optimization.lr
        train_set.epoch = epoch.number
        title = f"epoch {epoch.number + 1}/{config.epochs}"
        with explain_out_of_memory(lambda: advice(config, data.size, bfloat16, free, world())):
            train_one_epoch(
                model, loader, criterion, optimization, device, bfloat16, epoch, config.max_skipped, stop, title
            )
        weights = {"model": network.state_dict(), "config": config.to_dict(), **of_data}
        if epoch.step < len(batches):
            epoch.seconds = time.monotonic() - began
            if rank() == 0:
                save(weights)
            stop.end(f"after step {epoch.step} of {title}")

        share_statistics(network)
        volumes = segment(network, val_set, "validate")
        scores = summarize([
            {"subject": volume.subject, "class": name, "dsc": dice(volume.prediction == k, volume.target == k)}
            for volume in volumes for k, name in enumerate(classes) if k > 0
        ])  # fmt: skip
        score = scores["overall"]["dsc"]["mean"]
        optimization.end_epoch(score)

        losses = epoch.losses()
        val = {"val_dsc": score} | {f"val_dsc {name}": scores["per_class"][name]["dsc"]["mean"] for name in classes[1:]}
        used = {"seconds": round(time.monotonic() - began, 1), "memory_gib": round(peak_memory(device), 2)}
        log.append({"epoch": epoch.number + 1, "lr": epoch.lr, **losses, **val, **used})
        lr, improved, best = epoch.lr, epoch.number == 0 or score > best, max(best, score)
        epoch = Epoch(epoch.number + 1)
        if rank() == 0:
            if improved:
                save_checkpoint(out / "best.pt", weights | {"epoch": epoch.number, "val_dsc": score})
            save(weights)
            write_csv(out / "log.csv", log)
            write_report(out, Shown("val", val_set, volumes, data.geometry))
            for name, value in (losses | val | used | {"lr": lr}).items():
                curves.add_scalar(name, value, epoch.number)
            for subject, pixels in overlays(volumes, val_set):
                curves.add_image(f"validation/{subject}", pixels, epoch.number, dataformats="HWC")
        print(epoch_line(log, best, config.epochs), flush=True)
        if any(add_up([bool(stop.received)])):
            stop.end(f"after {title}")
    stop.defer = False

    # ---------------------------------------------------------------- test
    wait_for_all()
    chosen = load_checkpoint(out / "best.pt", device)
    network.load_state_dict(chosen["model"])
    volumes = segment(network, test_set, "test")
    if rank() > 0:
        return
    (out / "predictions").mkdir(exist_ok=True)
    rows = []
    for volume in volumes:
        geometry = data.geometry.get(volume.subject, {})
        table = score_subject(volume.prediction, volume.target, classes, array_spacing(geometry))
        rows += [{"subject": volume.subject} | row for row in table]
        segmentation = np.array(data.values, np.min_scalar_type(max(data.values)))[volume.prediction]
        write_nifti(out / "predictions" / f"{volume.subject}.nii.gz", segmentation, geometry)
    summary = summarize(rows)
    write_csv(out / "test.csv", rows)
    save_overview(out / "test.png", volumes, test_set)
    cost = {"parameters": parameters, "best_epoch": chosen["epoch"], "epochs": len(log)}
    cost |= {"seconds": sum(row["seconds"] for row in log), "memory_gib": max(row["memory_gib"] for row in log)}
    write_json(out / "test.json", summary | cost)
    write_report(out, Shown("test", test_set, volumes, data.geometry), network)
    curves.close()
    unlock_folder(out)
    print(f"\nTest, best checkpoint (epoch {chosen['epoch']}), {len(volumes)} subjects in 3D, mean ± std\n")
    print(format_table(summary))
    print(f"\nEverything is in {out}:\nreport.html, test.csv, test.json, predictions, log.csv, best.pt")


def check_same_run(last: dict[str, Any], config: Config, of_data: dict[str, Any]) -> None:
    """Raises InputError where the checkpoint `last` of a run in config.out is none of this configuration and data."""
    if "optimization" not in last:
        raise InputError(f"{config.out}: was trained by an earlier version, which can end it; choose another --out")
    before, now = Config.from_dict(last["config"]).to_dict(), config.to_dict()
    kept = sorted(now.keys() - changeable(config))
    changed = [f"{name} {before[name]} -> {now[name]}" for name in kept if before[name] != now[name]]
    if changed:
        raise InputError(f"{config.out}: was trained with other settings ({', '.join(changed)}); choose another --out")
    parts = {
        "slices": "training slices",
        "evaluation": "validation or test slices",
        "labels": "classes",
        "values": "label values",
        "preparation": "preparation",
    }
    for key, what in parts.items():
        # Of labels, the order counts: it numbers the classes.
        if key in last and json.dumps(last[key]) != json.dumps(of_data[key]):
            raise InputError(f"{config.data}: has other {what} than {config.out} was trained on; choose another --out")


def command() -> None:
    """What the command line does: once, or in each of the processes that torchrun starts."""
    with user_errors(), StopSignal() as stop, process_group():
        main(from_first(parse_config), stop)


if __name__ == "__main__":
    command()
