"""A run on disk: its folder, how far it is, and everything that it goes on from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from config import GROUP_OF, Config, changeable, differences
from data.folder import Identity
from training.checkpoint import load_checkpoint, load_newest, save_checkpoint
from training.distributed import from_first, rank
from training.epoch import Epoch
from training.optimization import Optimization
from utils import InputError, lock_folder, make_folder, run_folders, unlock_folder, write_csv, write_json


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
        """The inverse of dataclasses.asdict."""
        return cls(Epoch(**values["epoch"]), values["best"], values["log"])


class Run:
    """The folder of a training, and the network, optimizer and progress that its checkpoints hold.

    Args:
        config: of the training; `out` is its folder, by default the next free runs/NNN-PRESET.
        identity: of its data set.
        network, optimization: what is trained; they get the state of the newest checkpoint where there is one.

    Raises InputError where the folder is another process's, holds another run, or only checkpoints that are damaged.
    The first process alone writes.
    """

    def __init__(self, config: Config, identity: Identity, network: nn.Module, optimization: Optimization) -> None:
        self.config, self.identity = config, identity
        self.network, self.optimization = network, optimization
        self.progress = Progress()
        self.folder = from_first(claim_folder, config.out, config.preset)
        self.resumed = self._resume()

    def _resume(self) -> str:
        """Take over the newest checkpoint; return where it stands, in words, or an empty text without one."""
        device = next(self.network.parameters()).device
        last = load_newest(self.folder, device)
        if last is None:
            return ""
        self._check(last)
        self.network.load_state_dict(last["model"])
        self.optimization.load_state_dict(last["optimization"])
        self.progress = Progress.from_dict(last["progress"])
        position = f"after epoch {len(self.progress.log)}"
        if self.progress.epoch.iteration:
            position += f", batch {self.progress.epoch.iteration}"
        return position

    def _check(self, last: dict[str, Any]) -> None:
        """Raises InputError where a checkpoint is of another configuration or other data."""
        if "progress" not in last:
            raise InputError(f"{self.folder}: was trained by another version, which can end it; choose another --out")
        before = Config.from_dict(last["config"])
        changed = differences(before, self.config, GROUP_OF.keys() - changeable(self.config))
        if changed:
            raise InputError(f"{self.folder}: was trained with other settings ({changed}); choose another --out")
        what = Identity.from_dict(last["data"]).difference(self.identity)
        if what:
            raise InputError(
                f"{self.config.data}: has other {what} than {self.folder} was trained on; choose another --out"
            )

    def begin(self, environment: dict[str, str]) -> None:
        """Write what is known before training, and take away the mark of a finished run."""
        if rank() == 0:
            (self.folder / "test.json").unlink(missing_ok=True)
            write_json(self.folder / "config.json", self.config.to_dict())
            write_json(self.folder / "environment.json", environment)
            write_csv(self.folder / "log.csv", self.progress.log)

    def _weights(self) -> dict[str, Any]:
        return {
            "model": self.network.state_dict(),
            "config": self.config.to_dict(),
            "data": self.identity.to_dict(),
        }

    def save(self) -> None:
        """Write everything that the training goes on from to last.pt."""
        if rank() == 0:
            state = {"optimization": self.optimization.state_dict(), "progress": asdict(self.progress)}
            save_checkpoint(self.folder / "last.pt", self._weights() | state, previous=self.folder / "previous.pt")

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Count an epoch: `row` is the log's, with the validation's score as "val_dsc". Saves; the best in best.pt."""
        progress = self.progress
        score = row["val_dsc"]
        improved = progress.epoch.number == 0 or score > progress.best
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
        best = load_checkpoint(self.folder / "best.pt", next(self.network.parameters()).device)
        self.network.load_state_dict(best["model"])
        return best["epoch"]

    def cost(self) -> dict[str, float]:
        """Parameters, epochs, seconds of training with validation, and the peak of memory in GiB."""
        log = self.progress.log
        return {
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "epochs": len(log),
            "seconds": sum(row["seconds"] for row in log),
            "memory_gib": max(row["memory_gib"] for row in log),
        }

    def close(self) -> None:
        """Let others into the folder."""
        unlock_folder(self.folder)


def claim_folder(folder: Path | None, preset: str) -> Path:
    """Make the folder of a run, by default the next free runs/NNN-PRESET, and lock it.

    Raises InputError where it is no folder, or another process is at work in it.
    """
    if folder is None:
        last = run_folders()[-1:]
        number = int(last[0].name.split("-")[0]) + 1 if last else 1
        folder = Path("runs") / f"{number:03d}-{preset}"
    make_folder(folder)
    lock_folder(folder)
    return folder


def has_checkpoint(folder: Path | None) -> bool:
    """Whether a run can go on in `folder`."""
    return folder is not None and any((folder / name).exists() for name in ("last.pt", "previous.pt"))
