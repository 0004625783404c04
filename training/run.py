"""A run on disk: its folder, how far it is, and everything that it goes on from."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from config import GROUP_OF, Config, changeable, differences
from data.folder import Identity
from models import count_parameters
from training.checkpoint import check_weights, content_of, load_checkpoint, load_newest, save_checkpoint
from training.distributed import from_first, rank
from training.epoch import Epoch
from training.optimization import Optimization
from training.transfer import Transfer, start_from
from utils import (
    InputError,
    OptionError,
    changes,
    errors_begin,
    lock_folder,
    make_folder,
    read_csv,
    read_json,
    run_folders,
    unlock_folder,
    write_csv,
    write_json,
)

MATTERS = ("commit", "changed since", "PyTorch", "device", "precision", "processes")
"""What of an environment changes results, or may."""


@dataclass
class Progress:
    """How far a run is."""

    epoch: Epoch = field(default_factory=lambda: Epoch(0))
    """The epoch that is being trained, or comes next."""
    best: float = -1.0
    """Best validation Dice so far."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """A row for each epoch that is done."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """The inverse of dataclasses.asdict. Raises ValueError, or what comes of values of other kinds."""
        progress = cls(Epoch(**values["epoch"]), values["best"], values["log"])
        epoch, log = progress.epoch, progress.log
        counts = (epoch.number, epoch.iteration, epoch.slices, epoch.skipped)
        of_rows = [number for row in log for number in row.values()]
        numbers = [progress.best, epoch.seconds, epoch.lr, *epoch.sums, *of_rows]
        are_counts = all(type(count) is int and count >= 0 for count in counts)
        are_numbers = all(type(number) in (int, float) for number in numbers)
        are_rows = all({"epoch", "val_dsc", "seconds", "memory_gib"} <= row.keys() for row in log)
        fits = len(epoch.sums) == len(Epoch(0).sums) and len(log) == epoch.number
        if not (are_counts and are_numbers and are_rows and fits):
            raise ValueError("its progress is none of a training")
        return progress


class Run:
    """The folder of a training, and the network, optimizer and progress that its checkpoints hold.

    Args:
        config: of the training; `out` is its folder, by default the next free runs/NNN-PRESET.
        identity: of its data set.
        network, optimization: what is trained; they get the state of the newest checkpoint where there is one. Else the
            first process's network gets the weights of `init` that fit; the others have them from `distribute`.

    Raises InputError where the folder is another process's, holds another run, or only checkpoints that are damaged.
    The first process alone writes.
    """

    def __init__(self, config: Config, identity: Identity, network: nn.Module, optimization: Optimization) -> None:
        self.config, self.identity = config, identity
        self.network, self.optimization = network, optimization
        self.progress = Progress()
        self.transfer = from_first(self._transfer)
        """What was taken from the file of `init`, where the training begins with one."""
        self.folder = from_first(claim_folder, config.out, config.preset)
        self.resumed = self._resume()

    def _transfer(self) -> Transfer | None:
        path = self.config.optimization.init
        if path is None or has_checkpoint(self.config.out):
            return None
        return start_from(path, self.network, self.config, self.identity)

    def _resume(self) -> str:
        """Take over the newest checkpoint; return where it stands, in words, or an empty text without one."""
        device = next(self.network.parameters()).device
        newest = load_newest(self.folder, device)
        if newest is None:
            log = self.folder / "log.csv"
            if log.exists() and read_csv(log):
                raise InputError(f"{self.folder}: is a run, but has no last.pt to go on from; choose another --out")
            return ""
        path, last = newest
        if "progress" not in last:
            raise InputError(f"{path}: no checkpoint of a training of this version; choose another --out")
        with content_of(path):
            before, identity = Config.from_dict(last["config"]), Identity.from_dict(last["data"])
        self._check(before, identity)
        with content_of(path):
            check_weights(self.network, last["model"])
            self.progress = Progress.from_dict(last["progress"])
            self.network.load_state_dict(last["model"])
            self.optimization.load_state_dict(last["optimization"])
        done, wanted = len(self.progress.log), self.config.optimization.epochs
        if wanted < done:
            raise OptionError(f"epochs {wanted}: {self.folder} has {done} already; give as many or more")
        if done:
            self._read_best()  # the test needs it; what is wrong with it shows now, not after the last epoch
        position = f"after epoch {done}"
        if self.progress.epoch.iteration:
            position += f", batch {self.progress.epoch.iteration}"
        return position

    def _check(self, before: Config, identity: Identity) -> None:
        """Raises InputError where a checkpoint is of another configuration or other data."""
        changed = differences(before, self.config, GROUP_OF.keys() - changeable(self.config))
        if changed:
            raise InputError(f"{self.folder}: was trained with other settings ({changed}); choose another --out")
        what = identity.difference(self.identity)
        if what:
            raise InputError(
                f"{self.config.data}: has other {what} than {self.folder} was trained on; choose another --out"
            )

    def begin(self, environment: dict[str, str]) -> dict[str, str]:
        """Write what is known before training, and take away the mark of a finished run.

        Returns the environment with those in which the run was trained before; a note says what has changed.
        """
        if rank() > 0:
            return environment
        before = self._environment_before()
        if before:
            changed = changes({key: before[key] for key in MATTERS if key in before}, environment)
            start = f"{before.get('date')}: {before.get('command')}"
            if changed:
                print(f"note: {self.folder}: was trained otherwise before ({changed})")
                start += f" ({changed})"
            earlier = [before["earlier starts"], start] if "earlier starts" in before else [start]
            environment = environment | {"earlier starts": "; ".join(earlier)}
        (self.folder / "test.json").unlink(missing_ok=True)
        write_json(self.folder / "config.json", self.config.to_dict())
        write_json(self.folder / "environment.json", environment)
        write_csv(self.folder / "log.csv", self.progress.log)
        return environment

    def _environment_before(self) -> dict[str, str]:
        """What a resumed run was made by before; nothing where that is not known, or no texts."""
        path = self.folder / "environment.json"
        with contextlib.suppress(InputError):
            before = read_json(path) if self.resumed and path.exists() else {}
            if isinstance(before, dict) and all(isinstance(text, str) for text in before.values()):
                return before
        return {}

    def _weights(self) -> dict[str, Any]:
        """What a network is loaded from: `inference.networks.load_network`."""
        config, identity = self.config.to_dict(), self.identity.to_dict()
        return {"model": self.network.state_dict(), "config": config, "data": identity}

    def save(self) -> None:
        """Write everything that the training goes on from to last.pt."""
        if rank() == 0:
            state = {"optimization": self.optimization.state_dict(), "progress": asdict(self.progress)}
            save_checkpoint(self.folder / "last.pt", self._weights() | state, previous=self.folder / "previous.pt")

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Count an epoch: `row` is the log's, with the validation's score as "val_dsc". Saves; the best in best.pt."""
        progress = self.progress
        score = row["val_dsc"]
        improved = progress.epoch.number == 0 or score > progress.best or max(score, progress.best) == 0
        progress.best = max(progress.best, score)
        progress.epoch = Epoch(progress.epoch.number + 1)
        progress.log.append(row)
        if improved and rank() == 0:
            best = {"epoch": progress.epoch.number, "val_dsc": score}
            save_checkpoint(self.folder / "best.pt", self._weights() | best)
        self.save()
        if rank() == 0:
            write_csv(self.folder / "log.csv", progress.log)

    def load_best(self) -> int:
        """Give the network the weights of best.pt; return their epoch."""
        best = self._read_best()
        self.network.load_state_dict(best["model"])
        if rank() == 0 and self.progress.best <= 0:
            print("warning: no epoch had a validation Dice above 0, so nothing tells which network is the best")
        return best["epoch"]

    def _read_best(self) -> dict[str, Any]:
        """The content of best.pt. Raises InputError where it is missing, damaged, or of another network."""
        path = self.folder / "best.pt"
        remedy = f"; copy it back, or train on from {self.folder / 'last.pt'} with --init and another --out"
        if not path.exists():
            raise InputError(f"{path}: is missing, and the test needs it{remedy}")
        with errors_begin("the best network so far", remedy):
            best = load_checkpoint(path, next(self.network.parameters()).device)
            with content_of(path):
                check_weights(self.network, best["model"])
                best["epoch"] = int(best["epoch"])
        return best

    def cost(self) -> dict[str, float]:
        """Parameters, epochs, seconds of training with validation, and the peak of memory in GiB."""
        log = self.progress.log
        return {
            "parameters": count_parameters(self.network),
            "epochs": len(log),
            "seconds": sum(row["seconds"] for row in log),
            "memory_gib": max(row["memory_gib"] for row in log),
        }

    def close(self) -> None:
        """Let others into the folder; a finished run needs no checkpoint in reserve."""
        (self.folder / "previous.pt").unlink(missing_ok=True)
        unlock_folder(self.folder)


def claim_folder(folder: Path | None, preset: str) -> Path:
    """Make the folder of a run, by default the next free runs/NNN-PRESET, and lock it.

    Raises InputError where it is no folder, or another process is at work in it.
    """
    if folder is None:
        folder = _next_folder(Path("runs"), preset)
    make_folder(folder)
    lock_folder(folder)
    return folder


def _next_folder(root: Path, preset: str) -> Path:
    """Make the next folder NNN-PRESET; processes that do so at one moment get a number each."""
    make_folder(root)
    last = run_folders(root)[-1:]
    number = int(last[0].name.split("-")[0]) + 1 if last else 1
    while True:
        folder = root / f"{number:03d}-{preset}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            if len(list(root.glob(f"{number:03d}-*"))) == 1:
                return folder
            folder.rmdir()  # another preset's was made meanwhile
        number += 1


def has_checkpoint(folder: Path | None) -> bool:
    """Whether a run can go on in `folder`."""
    return folder is not None and any((folder / name).exists() for name in ("last.pt", "previous.pt"))
