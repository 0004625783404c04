"""Several processes that train one network (torchrun), or one that is alone. Nothing here needs to know which.

Each process has a rank; the first one, of rank 0, speaks and writes for all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from utils import InputError

T = TypeVar("T")


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun has started, until the block ends; without torchrun, do nothing.

    Raises ConnectionError, which says how to go on, where one of the others is lost; InputError where there are more
    processes than GPUs.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus:
        if local >= gpus:
            raise InputError(f"--nproc_per_node: more processes than GPUs; {gpus} are visible")
        torch.cuda.set_device(local)
    try:
        # Restarted processes must not find the addresses that those before them have left in the store.
        store, number, count = next(dist.rendezvous("env://"))
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
        with contextlib.ExitStack() as stack:
            if rank() > 0:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
            yield
    except FloatingPointError:
        if rank() == 0:  # all processes have this one
            raise
        raise SystemExit(1) from None
    except RuntimeError as error:
        if not _lost(error):
            raise
        message = f"process {rank()} of {world_size()} has lost another one, which was killed or failed"
        raise ConnectionError(f"{message}; the same command with --resume goes on from the last checkpoint") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _lost(error: Exception) -> bool:
    """Whether an error comes from the connection to other processes: gloo and NCCL have no exception of their own."""
    words = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)


def rank() -> int:
    """Number of this process; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def from_first(compute: Callable[..., T], *arguments: Any) -> T:
    """What `compute(*arguments)` returns in the first process, in all of them; it is called in no other.

    Where it fails there, the others end silently.
    """
    if world_size() == 1:
        return compute(*arguments)
    box = [False, None]  # whether it worked, and what it returned
    try:
        if rank() == 0:
            box = [True, compute(*arguments)]
    finally:
        dist.broadcast_object_list(box)
    if not box[0]:
        raise SystemExit(2)
    return box[1]


def shard(items: Sequence[T]) -> list[T]:
    """This process's part of `items`."""
    return list(items[rank() :: world_size()])


def gather(items: list[T]) -> list[T]:
    """The items that the processes made of their `shard`, in the order of the whole, in all of them."""
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, items)
    longest = max(len(part) for part in parts)
    return [part[k] for k in range(longest) for part in parts if k < len(part)]


def all_reduce(values: Tensor) -> Tensor:
    """The sums of `values` over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def on_any(condition: bool) -> bool:
    """Whether `condition` holds in any of the processes."""
    return bool(all_reduce(torch.tensor(float(condition))) > 0)


class AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over all processes, through which gradients flow back into each of them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return AllReduceSum.forward(ctx, grad)


def distribute(model: nn.Module, device: torch.device) -> nn.Module:
    """The model to train: its gradients are averaged over the processes, and it begins with the first one's weights."""
    if world_size() == 1:
        return model
    # Every step uses the same weights (static_graph); those that none uses, such as PSPNet's, are not waited for then.
    return nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None, static_graph=True)


def broadcast_statistics(model: nn.Module) -> None:
    """Give all processes the running statistics of the first one, which is what the checkpoints hold."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def barrier() -> None:
    """Go on when all processes are here."""
    if world_size() > 1:
        dist.barrier()
