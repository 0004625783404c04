"""How much memory a training step takes: estimated before training, and what to change where it does not suffice."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config import WITHOUT_BACKBONE, Config
from losses import GuidedLoss
from models import build_model, recompute_activations
from utils import is_out_of_memory


class StepMemory(NamedTuple):
    """Bytes of a training step: what does not depend on the batch, and what each slice adds."""

    fixed: int
    """Weights, gradients, both moments of Adam, and the weights in bfloat16."""
    per_slice: int
    """Activations that are kept for the backward pass."""

    def of(self, slices: int) -> int:
        """Bytes with so many slices in a process."""
        return self.fixed + slices * self.per_slice

    def fits(self, available: int) -> int:
        """How many slices fit into so many bytes; 0: not even one."""
        return max(0, available - self.fixed) // self.per_slice


def step_memory(config: Config, size: tuple[int, int], bfloat16: bool) -> StepMemory:
    """Estimate for slices of `size` (rows, columns), from a forward pass of tensors that have shapes but no content.

    What the device's libraries take for themselves is not in it.
    """
    fake, config = FakeTensorMode(allow_non_fake_inputs=True), replace(config, pretrained=False)
    try:
        with fake:
            model = build_model(config)
    except DataDependentOutputException:  # transformers read the rates of their dropout from a tensor
        model = build_model(config)
    with fake:
        if config.recompute:
            recompute_activations(model)
        image = torch.zeros(1, config.channels, *size)
        target = torch.zeros(1, *size, dtype=torch.int64)
        with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            terms = GuidedLoss(dice=config.dice)(model(image), target)
            kept = live.bytes
        del terms
    parameters = sum(parameter.numel() for parameter in model.parameters())
    copies = 2 * parameters if bfloat16 else 0
    return StepMemory(16 * parameters + copies, max(1, kept - copies))


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of all storages that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.bytes += size
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.bytes -= size


def available_bytes(device: torch.device) -> int:
    """Memory that a process could still take: of the GPU, or of the machine and its control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no control groups, or "max"
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        fields = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        cache = int(fields["active_file"]) + int(fields["inactive_file"])  # given back when it is needed
        available = min(available, limit - used + cache)
    return available


def advice(config: Config, size: tuple[int, int], bfloat16: bool, available: int, processes: int) -> str:
    """Flags with which a step should fit into `available` bytes in each of the processes."""
    ways = []
    for recompute in {config.recompute, config.model not in WITHOUT_BACKBONE}:
        memory = step_memory(replace(config, recompute=recompute), size, bfloat16)
        slices = processes * min(memory.fits(available), -(-config.batch_size // processes))
        if slices:
            flags = f"--batch_size {min(slices, config.batch_size)}" + " --recompute" * recompute
            ways.append(f"{flags} (about {memory.of(-(-slices // processes)) / 2**30:.1f} GiB)")
    return f"try {' or '.join(ways)}" if ways else "take a smaller --backbone, fewer --steps, or smaller slices"


@contextlib.contextmanager
def explain_out_of_memory(advise: Callable[[], str]) -> Iterator[None]:
    """Raises MemoryError with advice in its message where the block runs out of memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(f"out of memory in a training step; {advise()}") from None
