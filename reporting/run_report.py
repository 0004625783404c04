"""What a training shows while it runs: its page, pictures, TensorBoard. Whatever fails in here is a warning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from data.dataset import SliceDataset
from data.folder import DataFolder
from data.volumes import Volume
from reporting.figures import overlays, save_overview
from reporting.run_page import write_page
from reporting.viewer import Segmented
from training.distributed import rank
from utils import harmless


class RunReport:
    """The page, pictures and curves of the run in `folder`, of which `epochs` are done; written by the first process.

    The run goes on where one of them cannot be written: its checkpoints and scores do not depend on them.
    """

    def __init__(self, folder: Path, data: DataFolder, epochs: int) -> None:
        self.folder, self.data = folder, data
        self.curves = None
        if rank() > 0:
            return
        with harmless(folder / "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.curves = SummaryWriter(folder / "tensorboard", purge_step=epochs + 1)

    def show_epoch(self, row: dict[str, Any], volumes: Sequence[Volume], val_set: SliceDataset) -> None:
        """An epoch's row of the log and its segmentation of the validation subjects."""
        if rank() > 0:
            return
        with harmless(self.folder / "report.html"):
            write_page(self.folder, Segmented("val", val_set, volumes, self.data.geometry))
        if self.curves is not None:
            with harmless(self.folder / "tensorboard"):
                self._draw_curves(row, volumes, val_set)

    def _draw_curves(self, row: dict[str, Any], volumes: Sequence[Volume], val_set: SliceDataset) -> None:
        epoch = row["epoch"]
        for name, value in row.items():
            if name != "epoch":
                self.curves.add_scalar(name, value, epoch)
        for subject, pixels in overlays(volumes, val_set):
            self.curves.add_image(f"validation/{subject}", pixels, epoch, dataformats="HWC")

    def show_test(self, volumes: Sequence[Volume], test_set: SliceDataset, network: nn.Module) -> None:
        """The segmentation of the test subjects, and what the network looks at in them."""
        if rank() > 0:
            return
        with harmless(self.folder / "test.png"):
            save_overview(self.folder / "test.png", volumes, test_set, self.data.geometry)
        with harmless(self.folder / "report.html"):
            write_page(self.folder, Segmented("test", test_set, volumes, self.data.geometry), network)
        if self.curves is not None:
            with harmless(self.folder / "tensorboard"):
                self.curves.close()
