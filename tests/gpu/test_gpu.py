"""What only a GPU shows. Nothing in here needs more than torch, torchvision and what the product imports."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, nn

from config import Config, parse_config
from data.batches import read_batches
from data.folder import open_data
from losses import GuidedLoss
from main import main
from models import NETWORKS, build_model
from models.kernels.blocked_attention import attend
from predict import Options
from predict import main as predict
from report import Options as ReportOptions
from report import main as report
from training.checkpoint import load_checkpoint
from training.device import Machine
from training.distributed import AllReduceSum
from training.epoch import SKIPPED, Epoch, Statistics, Training, agree, forward_and_backward, train_one_epoch
from training.memory import step_memory
from training.optimization import Optimization
from training.setup import training_loader
from training.signals import StopSignal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible"),
]
SMALL = Config.of(backbone="resnet18")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """float32 is float32: no TF32 in convolutions and products. What a test has changed of it, too, is put back."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def data(make_data) -> Path:
    """Twelve training slices of 64 x 64."""
    return make_data({"train": ["1", "2"], "val": ["3"], "test": ["4"]}, numbers=(1, 2, 3, 4, 5, 6), size=(64, 64))


def run(data: Path, out: Path, *flags: str) -> Path:
    """A small network, two epochs, on the GPU."""
    small = ["--backbone", "resnet18", "--steps", "1", "--batch_size", "4", "--device", "cuda", "--epochs", "2"]
    main(parse_config(["--data", str(data), "--out", str(out), *small, *flags, "--resume"]))
    return out


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("positions", [49, 1024])
def test_attention_equals_its_formula(dtype, tolerance, positions):
    """Values and gradients, against float64 on the CPU with the N x N map."""
    torch.manual_seed(0)
    query, key = (torch.randn(2, positions, 8) for _ in range(2))
    value, upstream = (torch.randn(2, positions, 64) for _ in range(2))
    inputs = [x.to("cuda", dtype).requires_grad_() for x in (query, key, value)]
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    ours = attend(*inputs)
    ours.backward(upstream.to("cuda", dtype))
    theirs = (exact[0] @ exact[1].mT).softmax(-1) @ exact[2]
    theirs.backward(upstream.to(dtype).double())
    for mine, other in zip([ours, *(x.grad for x in inputs)], [theirs, *(x.grad for x in exact)], strict=True):
        assert (mine.detach().cpu().double() - other.detach()).norm() < tolerance * other.detach().norm()


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_trains_a_step_and_agrees_with_the_cpu(name):
    torch.manual_seed(0)
    on_cpu = build_model(SMALL.change(model=name))
    image, target = torch.rand(2, 1, 64, 64), torch.randint(0, 5, (2, 64, 64))
    on_gpu = copy.deepcopy(on_cpu).to("cuda", memory_format=torch.channels_last)
    with torch.inference_mode():
        expected, ours = on_cpu.eval()(image), on_gpu.eval()(image.cuda()).cpu()
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()
    GuidedLoss()(on_gpu.train()(image.cuda()), target.cuda()).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in on_gpu.parameters())


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_iterations_do_not_wait(data, dtype):
    """PyTorch raises an error where the host would wait for the device; three iterations have set everything up."""
    machine = Machine(torch.device("cuda"), dtype, workers=0)
    dataset = open_data(data).dataset("train")
    config = SMALL.change(batch_size=2, steps=1, max_skipped=0)
    loader = training_loader(dataset, config, machine)
    network = build_model(config).to("cuda", memory_format=torch.channels_last)
    optimization = Optimization(network, config.optimization, len(loader), dtype)
    training = Training(network, loader, GuidedLoss(), optimization, machine, StopSignal())
    train_one_epoch(training, Epoch(0), "")
    batches = [tuple(part.cuda() for part in batch) for batch in read_batches(loader)]  # loading is another matter
    statistics = Statistics(network)
    network.train()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for image, target in batches:
            statistics.keep()
            own = forward_and_backward(training, image, target, 1.0)
            outcome = agree(own, optimization.scaled_too_far(), stop=False)
            skip = outcome[SKIPPED] > 0
            optimization.step(skip)
            statistics.restore_if(skip)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_a_run_ends_and_is_read_on_the_cpu(data, tmp_path, amp):
    """Whatever it computes in; its best checkpoint segments on either device, and its page is written again."""
    out = run(data, tmp_path / "run", "--amp", amp)
    assert json.loads((out / "test.json").read_text())["epochs"] == 2
    for device in ("cuda", "cpu"):
        predict(Options(str(out / "best.pt"), (str(data / "test"),), tmp_path / device, device=device))
        assert (tmp_path / device / "4.nii.gz").exists()
    (out / "report.html").unlink()
    report(ReportOptions((out,), device="cuda"))
    assert "4" in (out / "report.html").read_text()


def test_a_run_of_the_gpu_goes_on_on_the_cpu_and_back(data, tmp_path):
    out = run(data, tmp_path / "run", "--epochs", "1", "--amp", "off")
    run(data, out, "--epochs", "2", "--device", "cpu", "--amp", "off")
    run(data, out, "--epochs", "3", "--amp", "off")
    assert json.loads((out / "test.json").read_text())["epochs"] == 3


@pytest.fixture
def alone_in_a_group(tmp_path: Path) -> Iterator[None]:
    """This process as the only one of a group that reduces with NCCL."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_nccl_on_one_card(alone_in_a_group):
    """Gradients through DistributedDataParallel and sums through NCCL are those of the network alone."""
    torch.manual_seed(0)
    network = build_model(SMALL.change(steps=1)).to("cuda", memory_format=torch.channels_last)
    image, target = torch.rand(2, 1, 64, 64, device="cuda"), torch.randint(0, 5, (2, 64, 64), device="cuda")
    device = torch.device("cuda", torch.cuda.current_device())
    shared = nn.parallel.DistributedDataParallel(copy.deepcopy(network), [device], static_graph=True)
    GuidedLoss()(network.train()(image), target).total.backward()
    GuidedLoss(all_reduce=AllReduceSum.apply)(shared.train()(image), target).total.backward()
    pairs = zip(network.parameters(), shared.module.parameters(), strict=True)
    alone, together = (torch.cat([p.grad.flatten() for p in side]) for side in zip(*pairs, strict=True))
    assert (together - alone).norm() < 1e-4 * alone.norm()


def test_torchrun_on_one_card(data, tmp_path):
    """As a user starts it; the first process asks NCCL and gloo for the same as several would."""
    out = tmp_path / "run"
    flags = ["--data", str(data), "--out", str(out), "--backbone", "resnet18", "--batch_size", "4", "--epochs", "1"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "main.py", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (out / "test.json").exists()


def test_deterministic_runs_are_equal_and_go_on_bit_for_bit(data, tmp_path):
    flags = ["--deterministic", "--amp", "off"]
    first, second = (run(data, tmp_path / name, *flags) for name in ("first", "second"))
    resumed = run(data, tmp_path / "resumed", *flags, "--epochs", "1")
    run(data, resumed, *flags)
    weights = [load_checkpoint(out / "last.pt")["model"] for out in (first, second, resumed)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
    torch.testing.assert_close(weights[2], weights[0], rtol=0, atol=0)


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(data, capsys):
    """The device skips it, and the host says so some iterations later."""

    class Spoiled(GuidedLoss):
        calls = 0

        def forward(self, *values, **named):
            terms = super().forward(*values, **named)
            Spoiled.calls += 1
            return terms._replace(total=terms.total * float("nan")) if Spoiled.calls == 2 else terms

    machine = Machine(torch.device("cuda"), torch.float32, workers=0)
    config = SMALL.change(batch_size=2, steps=1)
    loader = training_loader(open_data(data).dataset("train"), config, machine)
    network = build_model(config).to("cuda", memory_format=torch.channels_last)
    optimization = Optimization(network, config.optimization, len(loader))
    epoch = Epoch(0)
    train_one_epoch(Training(network, loader, Spoiled(), optimization, machine, StopSignal()), epoch, "")
    assert (epoch.skipped, epoch.iteration, epoch.slices) == (1, 6, 10)
    assert "epoch 1, batch 2: the loss or its gradient is not finite" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in network.state_dict().values())
    steps = {int(state["step"]) for state in optimization.optimizer.state.values()}
    assert steps == {5}


# ---------------------------------------------------------------- memory


def test_peak_memory_is_near_the_estimate():
    """Of a step of the paper's network: within a third, the libraries' own memory among it."""
    config = Config.of(batch_size=4)
    network = build_model(config).to("cuda", memory_format=torch.channels_last)
    optimization = Optimization(network, config.optimization, 1)
    image, target = torch.rand(4, 1, 256, 256, device="cuda"), torch.zeros(4, 256, 256, dtype=torch.long, device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            terms = GuidedLoss()(network(image), target)
        terms.total.backward()
        optimization.step(torch.tensor(False, device="cuda"))
    estimate = step_memory(config, (256, 256), half=True).of(4)
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimate, rel=1 / 3)


def test_out_of_memory_is_a_line(data, tmp_path):
    try:
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.001)
        with pytest.raises((MemoryError, torch.OutOfMemoryError)) as caught:
            run(data, tmp_path / "run", "--batch_size", "12")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory" in str(caught.value).lower()


def test_slices_of_512_train_in_24_gib():
    """The paper's network, batches of eight, bfloat16."""
    network = build_model(Config()).to("cuda", memory_format=torch.channels_last)
    optimization = Optimization(network, Config().optimization, 1)
    torch.cuda.reset_peak_memory_stats()
    image, target = torch.rand(8, 1, 512, 512, device="cuda"), torch.zeros(8, 512, 512, dtype=torch.long, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        terms = GuidedLoss()(network(image), target)
    terms.total.backward()
    optimization.step(torch.tensor(False, device="cuda"))
    assert torch.cuda.max_memory_allocated() < 24 * 2**30
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        logits = network.eval()(torch.rand(1, 1, 1024, 1024, device="cuda"))
    assert np.array_equal(logits.shape, (1, 5, 1024, 1024))
