"""Train MS-Dual-Guided on slices, validate every epoch and score the test subjects in 3D.

python main.py                             the paper's protocol on dataset/
python main.py --preset quick              a result in minutes, also on a CPU
torchrun --nproc_per_node=4 main.py ...    on four GPUs
python main.py --help                      every hyperparameter (config.py)
"""

from __future__ import annotations

from config import Config, parse_config
from training.signals import StopSignal
from utils import first_process_speaks, user_errors

if __name__ == "__main__":  # signals, --help and mistakes in flags do not wait for PyTorch, which loads for seconds
    StopSignal().listen()
    with first_process_speaks(), user_errors():
        CONFIG = parse_config()

import time

from inference.segmentation import check_finite, segment_split
from reporting.run_report import RunReport
from reporting.score_table import format_heading, format_table
from training.device import Machine, peak_memory, without_denormals
from training.distributed import barrier, broadcast_statistics, from_first, on_any, process_group, rank
from training.environment import environment
from training.epoch import Training, train_one_epoch
from training.memory import MemoryBudget
from training.optimization import Optimization
from training.run import Run
from training.scores import validation_scores, write_test
from training.setup import check_options, open_data_of, training_loader, training_loss, training_network
from training.terminal import epoch_line, introduce
from utils import seed_everything


def main(config: Config, stop: StopSignal | None = None) -> None:
    """Train, choose the epoch by the validation subjects, score the test subjects."""
    # ---------------------------------------------------------------- set-up
    stop = stop or StopSignal()
    check_options(config)
    machine = Machine.of(config.machine)
    seed_everything(config.machine.seed)

    # ---------------------------------------------------------------- data
    data = from_first(open_data_of, config)
    config = config.change(channels=data.channels, classes=len(data.labels.names))
    train_set = data.dataset("train", config.augmentation, config.machine.seed)
    val_set, test_set = data.dataset("val"), data.dataset("test")
    loader = training_loader(train_set, config, machine)

    # ---------------------------------------------------------------- network
    budget = MemoryBudget.of(config, data.size, machine)
    network = training_network(config, machine)
    criterion = training_loss(config.loss, config.network.classes, machine.device)
    optimization = Optimization(network, config.optimization, len(loader), machine.dtype)
    run = Run(config, data.identity(), network, optimization)
    introduce(run, data, machine, budget)
    made_by = run.begin(environment(machine))
    training = Training(network, loader, criterion, optimization, machine, stop)
    report = RunReport(run.folder, data, len(run.progress.log))

    # ---------------------------------------------------------------- training
    stop.defer = True
    while run.progress.epoch.number < config.optimization.epochs:
        began = time.monotonic() - run.progress.epoch.seconds
        losses = train(training, run, budget, began)
        broadcast_statistics(network)
        volumes = segment_split(network, val_set, config.evaluation, machine, "validate")
        scores = validation_scores(volumes, data.labels.names)
        optimization.end_epoch(scores["val_dsc"])
        seconds, memory = round(time.monotonic() - began, 1), round(peak_memory(machine.device), 2)
        run.end_epoch(losses | scores | {"seconds": seconds, "memory_gib": memory})
        report.show_epoch(run.progress.log[-1], volumes, val_set)
        print(epoch_line(run.progress, config.optimization.epochs), flush=True)
        if on_any(bool(stop.received)):
            stop.end(f"after epoch {len(run.progress.log)}/{config.optimization.epochs}")
    stop.defer = False

    # ---------------------------------------------------------------- test
    barrier()
    best_epoch = run.load_best()
    volumes = segment_split(network, test_set, config.evaluation, machine, "test")
    check_finite(volumes, run.folder / "best.pt")
    if rank() > 0:
        return
    summary = write_test(run.folder, volumes, data, run.cost() | {"best_epoch": best_epoch, "environment": made_by})
    report.show_test(volumes, test_set, network)
    run.close()
    print(f"\nTest, best checkpoint (epoch {best_epoch}), {format_heading(summary)}\n\n{format_table(summary)}")
    print(f"\nEverything is in {run.folder}:\nreport.html, test.csv, test.json, predictions, log.csv, best.pt")


def train(training: Training, run: Run, budget: MemoryBudget, began: float) -> dict[str, float]:
    """Train an epoch from where it stands; return its row of the log. A signal to stop saves and ends the program.

    `began` is the time at which an epoch without interruption would have begun.
    """
    epoch = run.progress.epoch
    title = f"epoch {epoch.number + 1}/{run.config.optimization.epochs}"
    with budget.explain_out_of_memory():
        train_one_epoch(training, epoch, title)
    if training.interrupted(epoch):
        epoch.seconds = time.monotonic() - began
        run.save()
        training.stop.end(f"after batch {epoch.iteration} of {title}")
    return {"epoch": epoch.number + 1, "lr": epoch.lr} | epoch.losses()


def command(config: Config) -> None:
    """What the command line does: once, or in each of the processes that torchrun starts."""
    with user_errors(), StopSignal() as stop, process_group(), without_denormals():
        main(config, stop)


if __name__ == "__main__":
    command(CONFIG)
