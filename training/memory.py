"""How much memory a training step takes: estimated before training, and what to change where it does not suffice."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config import Config
from losses import GuidedLoss, own_loss
from models import build_model, count_parameters, is_own, recompute_activations
from training.device import Machine
from training.distributed import world_size
from utils import OptionError, ceil_div, is_out_of_memory


class StepMemory(NamedTuple):
    """Bytes of a training step: what does not depend on the batch, and what each slice adds."""

    fixed: int
    """Weights, gradients, both moments of Adam, and under autocast the weights in half precision."""
    per_slice: int
    """Activations that are kept for the backward pass."""

    def of(self, slices: int) -> int:
        """Bytes with so many slices in a process."""
        return self.fixed + slices * self.per_slice

    def fits(self, available: int) -> int:
        """How many slices fit into so many bytes; 0: not even one."""
        return max(0, available - self.fixed) // self.per_slice


def step_memory(config: Config, size: tuple[int, int], half: bool) -> StepMemory | None:
    """Estimate for slices of `size` (rows, columns), with `half` under autocast.

    It comes from a forward pass of tensors that have shapes but no content. What the device's libraries take for
    themselves is not in it. A loss of one's own that needs content is left out; a network of one's own, None.
    """
    try:
        return _step_memory(config, size, half)
    except OptionError:
        raise
    except Exception:  # of any kind, of code that is not ours
        if config.loss.loss:
            return step_memory(config.change(loss=""), size, half)
        if is_own(config.network.model):
            return None
        raise


def _step_memory(config: Config, size: tuple[int, int], half: bool) -> StepMemory:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with fake:
            model = build_model(config)
    except (DataDependentOutputException, OptionError):  # constructors that read a tensor, as timm's of transformers
        model = build_model(config)
    with fake:
        if config.machine.recompute:
            recompute_activations(model)
        image = torch.zeros(1, config.network.channels, *size)
        target = torch.zeros(1, *size, dtype=torch.int64)
        with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = own_loss(config.loss.loss, config.network.classes)
            terms = GuidedLoss(dice=config.loss.dice, loss=loss)(model(image), target)
            kept = live.bytes
        del terms
        if is_own(config.network.model):
            model.eval()(image)  # refuses now what would be refused after an epoch
    parameters = count_parameters(model)
    copies = 2 * parameters if half else 0
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
    fields = _read_fields("/proc/meminfo")
    available = int(fields["MemAvailable:"]) * 1024
    with contextlib.suppress(OSError, ValueError):  # no control groups, or "max"
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        fields = _read_fields("/sys/fs/cgroup/memory.stat")
        cache = int(fields["active_file"]) + int(fields["inactive_file"])  # given back when it is needed
        available = min(available, limit - used + cache)
    return available


def _read_fields(path: str) -> dict[str, str]:
    """A file of lines "name number ...": name -> number."""
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return {words[0]: words[1] for words in lines}


@dataclass(frozen=True)
class MemoryBudget:
    """What a training step needs against what there is, in each process."""

    config: Config
    size: tuple[int, int]
    """Rows and columns of the largest slice."""
    half: bool
    available: int
    """Bytes."""
    processes: int

    @classmethod
    def of(cls, config: Config, size: tuple[int, int], machine: Machine) -> MemoryBudget:
        """The budget now; processes on one CPU share its memory."""
        processes = world_size()
        available = available_bytes(machine.device)
        if machine.device.type == "cpu":
            available //= processes
        return cls(config, size, machine.dtype != torch.float32, available, processes)

    @cached_property
    def needed(self) -> int | None:
        """Bytes of a step as it is configured; None where that is not known."""
        own = ceil_div(self.config.optimization.batch_size, self.processes)
        memory = step_memory(self.config, self.size, self.half)
        return None if memory is None else memory.of(own)

    def advice(self) -> str:
        """Flags with which a step should fit."""
        ways = [self._way(recompute) for recompute in sorted({self.config.machine.recompute, True})]
        known = [way for way in ways if way]
        if not known and is_own(self.config.network.model):
            return "take a smaller --batch_size, or smaller slices"
        if not known:
            return "take a smaller --backbone, fewer --steps, or smaller slices"
        return f"try {' or '.join(known)}"

    def _way(self, recompute: bool) -> str:
        """The flags with or without recomputation; an empty text where not even a slice fits."""
        try:
            memory = step_memory(self.config.change(recompute=recompute), self.size, self.half)
        except OptionError:  # the network has nothing to recompute
            return ""
        if memory is None:
            return ""
        batch_size = self.config.optimization.batch_size
        own = min(memory.fits(self.available), ceil_div(batch_size, self.processes))
        if own == 0:
            return ""
        slices = min(own * self.processes, batch_size)
        flag = " --recompute" if recompute else ""
        return f"--batch_size {slices}{flag} (about {memory.of(own) / 2**30:.1f} GiB)"

    @contextlib.contextmanager
    def explain_out_of_memory(self) -> Iterator[None]:
        """Raises MemoryError with advice in its message where the block runs out of memory."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(f"out of memory in a training step; {self.advice()}") from None
