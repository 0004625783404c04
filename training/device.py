"""The device of a training and what depends on it: precision, loader processes, memory."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from config import MachineConfig
from utils import InputError


@dataclass(frozen=True)
class Machine:
    """Where tensors live and how they are computed with."""

    device: torch.device
    dtype: torch.dtype
    """What networks compute in where autocast does: float32, bfloat16 or float16."""
    workers: int
    """Processes that load slices; 0: the training process loads them itself."""

    @classmethod
    def of(cls, options: MachineConfig) -> Machine:
        """The machine that `options` describe. Raises InputError for a device that cannot be used."""
        device = select_device(options.device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # events and pinned memory are of the current one
        if options.deterministic and device.type == "cuda":
            use_deterministic_kernels()
        return cls(device, choose_dtype(options.amp, device), loader_workers(options.workers, device))

    @property
    def pin_memory(self) -> bool:
        """Whether batches should lie in memory from which a GPU copies without waiting."""
        return self.device.type == "cuda"

    @property
    def precision(self) -> str:
        """The type that networks compute in."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which networks run. Without gradients, each weight is needed in this type but once."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype, cache_enabled=torch.is_grad_enabled())

    def copy(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) on the device, in the layout that convolutions want there."""
        return images.to(self.device, non_blocking=True, memory_format=torch.channels_last)


def select_device(name: str) -> torch.device:
    """The torch device called `name`; "auto" is the first visible GPU, or the CPU with one line that says so."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # torchrun counts the processes of a node
        print("No GPU is visible: running on the CPU.")
        return torch.device("cpu")
    try:
        device = torch.empty(0, device=name).device  # with its index
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: cannot be used ({reason}); choose auto, cpu or cuda:N") from None
    return device


@contextlib.contextmanager
def without_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as 0: the gradients of channel attention are full of them, and processors take long.

    Holds for this thread, and for PyTorch's where they start within.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def use_deterministic_kernels() -> None:
    """Let GPUs compute the same result every time; PyTorch warns of kernels for which it has no such variant."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as cuBLAS wants it for that
    torch.use_deterministic_algorithms(True, warn_only=True)


def choose_dtype(amp: str, device: torch.device) -> torch.dtype:
    """What networks compute in: `amp` is "off", "bf16", "fp16", or "auto", the fastest that the device computes in.

    auto: bfloat16 where the device has instructions for it; else float16 on a GPU with tensor cores (V100, T4, RTX 20);
    else float32.
    """
    if amp != "auto":
        return {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    if device.type == "cuda":
        with torch.cuda.device(device):
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def loader_workers(workers: int | str, device: torch.device) -> int:
    """Processes that load data: `workers`, or for "auto" as many as a GPU needs and none on the CPU, where they slow.

    Beside a GPU: eight at most, of the cores that this process may use and shares with the others of its node; one
    core is left for the training itself.
    """
    if workers != "auto":
        return int(workers)
    if device.type != "cuda":
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun counts the processes
    return min(8, max(1, cores - 1))


def device_name(device: torch.device) -> str:
    """What kind of device it is, and which."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device.type} ({name})"


def peak_memory(device: torch.device) -> float:
    """The most memory so far in GiB: that PyTorch has taken on a GPU, else that this process has taken."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**30
    # Not by getrusage, whose figure a program inherits from the process that started it.
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
