"""Train a model: prepare the data if needed, train on Ray workers, rank the held-out items, print the table.

What happens while workers train stands in `training/`. The same command goes on with a run that was interrupted.
"""

import argparse
import sys

from raysrec.checkpoints import Checkpoints
from raysrec.cluster.bundles import need_to_rank, need_to_train, scale_to_train
from raysrec.cluster.nodes import wait_for_nodes
from raysrec.cluster.runtime import ray_session, wants_gpu
from raysrec.command_line import config_parser, run_verb
from raysrec.config.loading import load
from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.evaluate import rank, training_summary
from raysrec.plan import plan, plan_here, refuse_impossible
from raysrec.prepare import find_prepared, prepare
from raysrec.report import print_runs
from raysrec.run_directory import RunDirectory, RunError, RunStopped
from raysrec.stopping import STOPPED
from raysrec.sweep import SweepDirectory
from raysrec.training.driver import learn


def train(config: RunConfig, *, fresh: bool = False) -> RunDirectory:
    """Train, rank, and return the finished run's directory.

    Args:
        config: The run.
        fresh: Throw away what an earlier run of this name left.

    Raises:
        RunError: The directory holds a run of another configuration, or a sweep, or `refuse_impossible` refuses this
            one.
        RunStopped: It was asked to end before it was finished.
    """
    refuse_impossible(config)
    run = RunDirectory(config.run_directory)
    if SweepDirectory.is_sweep(run.path):
        raise RunError(f"{run.path} holds a sweep, not a run; set storage.name to keep both")
    data = prepare_to_learn(config)
    if fresh and run.path.exists():
        RunDirectory.open(run.path).remove()
    _refuse_other_config(run, config)
    if run.is_finished():
        print(f"{run.path} is finished; --fresh trains it again")
        return run
    run.start(config, data.manifest.fingerprint)
    scale = scale_to_train(config)
    with ray_session(scale):
        room = wait_for_nodes([data.directory, run.path], need_to_train(scale), keep=True)
        print(plan(config, data, use_gpu=wants_gpu(config.scale)), flush=True)
        state = learn(run, data, config, room=room)
        wait_for_nodes([data.directory, run.path], need_to_rank(config))
        rank(run, data, config, training_summary(run, state))
    return run


def prepare_to_learn(config: RunConfig) -> PreparedData:
    """The prepared data of a run.

    Raises:
        RunError: There is nothing in it to learn from.
    """
    data = prepare(config.data, scale=config.scale)
    if not data.manifest.num_targets:
        raise RunError(
            f"{config.data.name}: every user has 3 interactions, of which two are held out and the first has no past; "
            "nothing is left to learn from"
        )
    return data


def _refuse_other_config(run: RunDirectory, config: RunConfig) -> None:
    """A run goes on only under the configuration it was begun with."""
    if not run.config_file.is_file() and (run.metrics_file.is_file() or Checkpoints(run.checkpoints).names()):
        raise RunError(f"{run.path} holds a part of a run, without its config.yaml; delete it, or set storage.name")
    if changes := run.other_settings(config):
        raise RunError(
            f"{run.path} holds a run with other settings: {changes}; set storage.name to keep both, or --fresh to "
            "throw the old one away"
        )


def main(arguments: argparse.Namespace) -> None:
    """Train as the command line says and print the table."""
    config = load(arguments.config, arguments.overrides)
    if arguments.dry_run:
        refuse_impossible(config)
        print(plan_here(config, find_prepared(config.data)))
        return
    try:
        run = train(config, fresh=arguments.fresh)
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED)
    print_runs([run.path])


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = config_parser(
        "train", "Train a model and rank every user's held-out item against the whole catalogue."
    )
    command_line.add_argument(
        "--dry-run", action="store_true", help="check the settings, print the plan, start nothing"
    )
    command_line.add_argument("--fresh", action="store_true", help="throw away what an earlier run of this name left")
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
