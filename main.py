"""Train MS-Dual-Guided on slices, validate every epoch and score the test subjects in 3D.

python main.py                      the paper's protocol on dataset/
python main.py --preset quick       a result in minutes, also on a CPU
python main.py --help               every hyperparameter (config.py)
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from config import Config, parse_config
from data.augment import Augmentation
from data.folder import open_data
from data.slices import collate
from data.splits import read_split
from data.volumes import array_spacing, write_nifti
from engine import segment_subjects, train_one_epoch
from figures import overlays, save_overview
from losses import GuidedLoss
from metrics import dice, format_table, score_subject, summarize
from models import build_model, recompute_activations
from report import Shown, environment, write_report
from utils import (
    load_checkpoint,
    load_newest,
    loader_workers,
    lock_folder,
    new_run_folder,
    peak_memory,
    save_checkpoint,
    seed_everything,
    select_device,
    use_bfloat16,
    user_errors,
    write_csv,
    write_json,
)


def main(config: Config) -> None:
    # ---------------------------------------------------------------- set-up
    device = select_device(config.device)
    bfloat16 = use_bfloat16(config.amp, device)
    workers = loader_workers(config.workers, device)
    seed_everything(config.seed)

    # ---------------------------------------------------------------- data
    data = open_data(config.data, subjects=config.split_file and read_split(config.split_file))
    classes = data.labels.names
    config = replace(config, channels=data.channels, classes=len(classes))
    augmentation = Augmentation(config.flip_probability, config.rotation_probability, config.rotation_degrees)
    train_set = data.dataset("train", augmentation, config.seed)
    val_set, test_set = data.dataset("val"), data.dataset("test")
    shuffle = torch.Generator()
    loader = DataLoader(
        train_set,
        config.batch_size,
        shuffle=True,
        generator=shuffle,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    for note in data.notes:
        print(f"note: {note}")
    for name, split in (("train", train_set), ("val", val_set), ("test", test_set)):
        print(f"{name:5} {len(split.subjects()):4} subjects {len(split):6} slices")

    # ---------------------------------------------------------------- model
    model = build_model(config).to(device, memory_format=torch.channels_last)
    if config.recompute:
        recompute_activations(model)
    criterion = GuidedLoss(config.alpha, config.beta, config.gamma)
    optimizer = torch.optim.Adam(model.parameters(), config.lr, config.betas, fused=True)
    # PyTorch lowers the rate after more than `patience` bad epochs, the paper after 50; eps would stop small rates.
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", config.plateau_factor, config.plateau_epochs - 1, 0.0, "abs", eps=0.0
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{len(classes)} classes: {', '.join(classes)}; {config.channels} channels")
    print(f"{config.network}, {parameters:,} parameters, {'bfloat16' if bfloat16 else 'float32'}")

    # ---------------------------------------------------------------- run folder
    out = config.out or new_run_folder(config.preset)
    out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out)
    (out / "test.json").unlink(missing_ok=True)  # it marks a finished run
    start, best, log = 0, -1.0, []
    last = load_newest(out, device)
    if last:
        model.load_state_dict(last["model"])
        optimizer.load_state_dict(last["optimizer"])
        scheduler.load_state_dict(last["scheduler"])
        start, best, log = last["epoch"], last["best"], last["log"]
        print(f"{out}: resumed after epoch {start}")
    write_json(out / "config.json", config.to_dict())
    write_json(out / "environment.json", environment(device))
    curves = SummaryWriter(out / "tensorboard", purge_step=start)

    # ---------------------------------------------------------------- training
    for epoch in range(start, config.epochs):
        began, lr = time.monotonic(), optimizer.param_groups[0]["lr"]
        # Order and augmentation are functions of seed and epoch alone, so a resumed run goes on as it would have.
        train_set.epoch = epoch
        shuffle.manual_seed(config.seed * 1_000_003 + epoch)
        title = f"epoch {epoch + 1}/{config.epochs}"
        losses = train_one_epoch(model, loader, criterion, optimizer, device, bfloat16, title)

        volumes = list(segment_subjects(model, val_set, config.eval_batch_size, workers, device, bfloat16, "validate"))
        scores = summarize([
            {"subject": volume.subject, "class": name, "dsc": dice(volume.prediction == k, volume.target == k)}
            for volume in volumes for k, name in enumerate(classes) if k > 0
        ])  # fmt: skip
        score = scores["overall"]["dsc"]["mean"]
        scheduler.step(score)

        val = {"val_dsc": score} | {f"val_dsc {name}": scores["per_class"][name]["dsc"]["mean"] for name in classes[1:]}
        used = {"seconds": round(time.monotonic() - began, 1), "memory_gib": round(peak_memory(device), 2)}
        log.append({"epoch": epoch + 1, "lr": lr, **losses, **val, **used})
        labels = dict(zip(*data.labels, strict=True))
        weights = {"model": model.state_dict(), "config": config.to_dict()}
        weights |= {"labels": labels, "values": list(data.values), "preparation": data.preparation}
        if epoch == 0 or score > best:
            best = max(best, score)
            save_checkpoint(out / "best.pt", weights | {"epoch": epoch + 1, "val_dsc": score})
        states = {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        newest = weights | states | {"epoch": epoch + 1, "best": best, "log": log}
        save_checkpoint(out / "last.pt", newest, previous=out / "previous.pt")
        write_csv(out / "log.csv", log)
        write_report(out, Shown("val", val_set, volumes, data.geometry))
        for name, value in (losses | val | used | {"lr": lr}).items():
            curves.add_scalar(name, value, epoch + 1)
        for subject, pixels in overlays(volumes, val_set):
            curves.add_image(f"validation {subject}, truth and prediction", pixels, epoch + 1, dataformats="HWC")
        print(f"{title}  loss {losses['total']:.3f}  val DSC {100 * score:.2f} (best {100 * best:.2f})  lr {lr:.1e}  "
              f"{log[-1]['seconds']:.0f} s", flush=True)  # fmt: skip
    curves.close()

    # ---------------------------------------------------------------- test
    chosen = load_checkpoint(out / "best.pt", device)
    model.load_state_dict(chosen["model"])
    (out / "predictions").mkdir(exist_ok=True)
    rows, shown = [], []
    for volume in segment_subjects(model, test_set, config.eval_batch_size, workers, device, bfloat16, "test"):
        geometry = data.geometry.get(volume.subject, {})
        scores = score_subject(volume.prediction, volume.target, classes, array_spacing(geometry))
        rows += [{"subject": volume.subject} | row for row in scores]
        segmentation = np.array(data.values, np.uint16 if max(data.values) > 255 else np.uint8)[volume.prediction]
        write_nifti(out / "predictions" / f"{volume.subject}.nii.gz", segmentation, geometry)
        shown.append(volume)
    summary = summarize(rows)
    write_csv(out / "test.csv", rows)
    save_overview(out / "test.png", shown, test_set)
    cost = {"parameters": parameters, "best_epoch": chosen["epoch"], "epochs": len(log)}
    cost |= {"seconds": sum(row["seconds"] for row in log), "memory_gib": max(row["memory_gib"] for row in log)}
    write_json(out / "test.json", summary | cost)
    write_report(out, Shown("test", test_set, shown, data.geometry), model)
    lock.close()
    print(f"\nTest, best checkpoint (epoch {chosen['epoch']}), {len(shown)} subjects in 3D, mean ± std\n")
    print(format_table(summary))
    print(f"\nEverything is in {out}: report.html, test.csv, test.json, predictions, log.csv, best.pt")


if __name__ == "__main__":
    with user_errors():
        main(parse_config())
