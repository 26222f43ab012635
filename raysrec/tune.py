"""Search for good settings: many trainings of one configuration whose parameters differ, compared by validation scores.

    python -m raysrec.tune --config configs/ml-1m.yaml --sweep configs/sweeps/recgrela-layers.yaml

A sweep's file names parameters and how they are drawn (`space`), how many trials there are (`num_samples`), and which
are ended early (`scheduler`). Data are prepared once. Each trial is a run directory like any other. The same command,
typed again, goes on: trials that are done are not repeated, others go on from their checkpoints.
"""

import argparse
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

import yaml
from tabulate import tabulate

from raysrec.checkpoints import Checkpoints
from raysrec.cluster.bundles import need_to_train, scale_to_train
from raysrec.cluster.nodes import wait_for_nodes
from raysrec.cluster.runtime import in_cluster, local_cpus, ray_session, threads_per_worker, wants_gpu
from raysrec.command_line import config_parser, describe_keys, run_verb
from raysrec.comparing.importance import importances
from raysrec.comparing.sweeps import read_sweep
from raysrec.config.run import RunConfig
from raysrec.data.prepared import PreparedData
from raysrec.evaluate import rank, training_summary
from raysrec.pages import write_sweep_page
from raysrec.place import PlaceError
from raysrec.plan import plan_here, refuse_impossible
from raysrec.prepare import find_prepared
from raysrec.report import print_runs
from raysrec.stopping import STOPPED, StopRequest, Watched, stop_requests
from raysrec.sweep.book import StoppingRule, TrialBook
from raysrec.sweep.config import SweepConfig, SweepError
from raysrec.sweep.loading import Sweep, load_sweep
from raysrec.sweep.record import SweepDirectory, TrialRecord, best_trial
from raysrec.sweep.table import final_table, parameters_in_words, sweep_shown
from raysrec.train import prepare_to_learn
from raysrec.training.driver import ask_to_stop
from raysrec.tuning.trial import SCHEDULER

GIVE_UP_S = 15.0
"""Seconds in which Tune must end when no trial is left."""


class SweepStopped(SweepError):
    """A sweep that was asked to end before it was finished."""


def tune(sweep: Sweep, *, fresh: bool = False, command: Sequence[str] = ()) -> SweepDirectory:
    """Train what is left of a sweep, rank its best trial or all, and return the sweep's directory.

    Args:
        sweep: The sweep.
        fresh: Throw away what an earlier sweep of this name left.
        command: What was typed.

    Raises:
        SweepError: The directory holds another sweep.
        SweepStopped: It was asked to end before it was finished.
    """
    config, directory = sweep.config, sweep.directory
    refuse_impossible(config)
    data = prepare_to_learn(config)
    _make_room(directory, fresh=fresh)
    directory.begin(sweep.settings, config, data.manifest.fingerprint)
    if not _is_finished(sweep):
        with _session(sweep, data):
            book = TrialBook(sweep, _rule(sweep))
            if not book.is_done:
                _train_all(book, data, command)
            keep_best(sweep, book.trials)
            _rank_left(sweep, data)
    return directory


def _is_finished(sweep: Sweep) -> bool:
    trials = sweep.directory.trials
    return (
        len(trials) >= sweep.settings.num_trials
        and all(trial.is_done for trial in trials)
        and not to_rank(sweep)
        and sweep.directory.best_file.is_file()
    )


@contextmanager
def _session(sweep: Sweep, data: PreparedData) -> Iterator[None]:
    """A Ray with room for the trials that are trained at once; one in which not even one can be trained is refused."""
    scale = scale_to_train(sweep.config)
    with ray_session(scale, cpus=sweep.settings.max_concurrent * local_cpus(scale)):
        wants_gpu(scale)
        wait_for_nodes([data.directory, sweep.directory.path], need_to_train(scale))
        yield


def _rule(sweep: Sweep) -> StoppingRule:
    from raysrec.tuning.ray_tune import EarlyStopping

    return EarlyStopping(sweep.settings.scheduler, max_epochs=sweep.max_epochs)


def _train_all(book: TrialBook, data: PreparedData, command: Sequence[str]) -> None:
    """Train all trials that are left while a table shows them.

    Raises:
        SweepStopped: It was asked to end.
    """
    from raysrec.tuning.ray_tune import run_trials

    sweep = book.sweep

    def run(give_up: threading.Event) -> None:
        run_trials(
            book,
            str(data.directory.absolute()),
            end_early=lambda trial: ask_to_stop(sweep.directory.run(trial), SCHEDULER),
            fitted=partial(_beside_others, sweep.settings),
            give_up=give_up,
            command=command,
        )

    with sweep_shown(book), stop_requests() as stop:
        error = _until_done_or_saved(run, book, stop)
    if stop:
        raise SweepStopped(f"{sweep.directory.path}: stopped by {stop.signal}; the same command goes on")
    if error is not None:
        raise error


def _until_done_or_saved(
    run: Callable[[threading.Event], None], book: TrialBook, stop: StopRequest
) -> BaseException | None:
    """Run until all trials have ended, or until those that run have saved because it was asked to stop."""
    directory, give_up, on_page = book.sweep.directory, threading.Event(), 0
    trials = Watched(partial(run, give_up), "raysrec-tune")
    for _ in trials.looks(stop, book.sweep.config.checkpoint.stop_within_s):
        if stop:
            book.close()
            if not book.running:
                break
            for trial in book.running:  # again and again: one that has only just started does not hear it yet
                ask_to_stop(directory.run(trial), stop.signal)
        elif (ended := sum(trial.ended_at is not None for trial in book.trials)) > on_page:
            on_page = ended
            _write_page(directory)
    book.interrupt(book.running)
    give_up.set()
    trials.wait(GIVE_UP_S)
    return trials.error


def _write_page(directory: SweepDirectory) -> None:
    """Write the page of what there is; one that cannot be written now is written next time, and ends no sweep."""
    try:
        write_sweep_page(directory.path)
    except (OSError, PlaceError) as error:
        print(f"the page of the sweep cannot be written: {error}", file=sys.stderr, flush=True)


def _beside_others(settings: SweepConfig, config: RunConfig) -> RunConfig:
    """On one machine, trials that are trained at once share its cores."""
    if in_cluster() or settings.max_concurrent == 1 or config.scale.threads_per_worker:
        return config
    threads = max(1, threads_per_worker(config.scale) // settings.max_concurrent)
    return config.model_copy(update={"scale": config.scale.model_copy(update={"threads_per_worker": threads})})


def keep_best(sweep: Sweep, trials: Sequence[TrialRecord]) -> None:
    """Write the best trial's configuration, to be trained as it is."""
    if (best := best_trial(trials)) is None:
        return
    config = sweep.best_config(best.parameters)
    words = f"# The best of {len(trials)} trials, {best.name}: validation {sweep.settings.metric} {best.score:.4f}.\n"
    sweep.directory.best_file.write(words + yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def to_rank(sweep: Sweep) -> list[TrialRecord]:
    """The trials whose test items are to be ranked and are not yet: the best, or all that were trained to the end."""
    trials = sweep.directory.trials
    if sweep.settings.rank == "best":
        trials = [best] if (best := best_trial(trials)) else []
    trained = [trial for trial in trials if trial.state == "finished"]
    return [trial for trial in trained if not sweep.directory.run(trial).metrics_file.is_file()]


def _rank_left(sweep: Sweep, data: PreparedData) -> None:
    """Rank test items, now that nothing can be chosen by them."""
    for trial in to_rank(sweep):
        run = sweep.directory.run(trial)
        record = Checkpoints(run.checkpoints).last_record()
        if record is not None:
            rank(run, data, sweep.config_of(trial.name, trial.parameters), training_summary(run, record.state))


def _make_room(directory: SweepDirectory, *, fresh: bool) -> None:
    if (directory.path / "config.yaml").is_file():
        raise SweepError(f"{directory.path} holds a run, not a sweep; set storage.name to keep both")
    if fresh and directory.path.exists():
        SweepDirectory.open(directory.path).remove()


def print_sweep(directory: SweepDirectory) -> None:
    """Print all trials, the best first, what mattered, and how to train the best."""
    settings, trials = directory.settings, directory.trials
    print(final_table(settings, trials))
    found = read_sweep(directory.path)
    shares = [one for one in importances(found.trials, found.parameters) if one.share is not None]
    if shares:
        print("\nimportance  " + ", ".join(f"{one.parameter} {one.share:.0%}" for one in shares))
    print(f"\npage  {write_sweep_page(directory.path)}")
    if (best := best_trial(trials)) is None:
        return
    print(f"\nbest  {best.name}: {parameters_in_words(best)}")
    print(f"      python -m raysrec.train --config {shlex.quote(str(directory.best_file))}")
    if best.state == "stopped":
        print("      it was ended early; the command above trains it to its end, raysrec.evaluate ranks it as it is")
    runs = [directory.run(trial) for trial in trials]
    if ranked := [run.path for run in runs if run.metrics_file.is_file()]:
        print()
        print_runs(ranked)


def describe(sweep: Sweep) -> str:
    """The space and what is asked for, as a table of two columns."""
    settings, config = sweep.settings, sweep.config
    rows = [("sweep", str(sweep.directory.path))]
    rows += [(key, str(sampler)) for key, sampler in settings.space.items()]
    drawn = "proposed by Optuna" if settings.search == "optuna" else "all checked"
    rows.append(("trials", f"{settings.num_trials:,}, {drawn}"))
    rows.append(("at once", f"{settings.max_concurrent}, on {config.scale.max_workers} workers each"))
    rows.append(("compared by", f"validation {settings.metric}"))
    rows.append(("ended early", _rule_in_words(settings)))
    rows.append(("epochs", f"up to {settings.num_trials * sweep.max_epochs:,} in all, {sweep.max_epochs} a trial"))
    return tabulate(rows, tablefmt="plain")


def _rule_in_words(settings: SweepConfig) -> str:
    rule = settings.scheduler
    if rule.name == "none":
        return "none"
    of = f"the best {1 / rule.reduction_factor:.0%} go on" if rule.name == "asha" else "those below the median"
    return f"{rule.name}: {of}, from epoch {rule.grace_epochs} on"


def main(arguments: argparse.Namespace) -> None:
    """Search as the command line says and print the tables."""
    sweep = load_sweep(arguments.sweep, arguments.config, arguments.overrides)
    refuse_impossible(sweep.config)
    if arguments.dry_run:
        print(describe(sweep), "", "every trial, but for its parameters:", "", sep="\n")
        print(plan_here(sweep.config, find_prepared(sweep.config.data)))
        return
    print(describe(sweep), flush=True)
    try:
        directory = tune(sweep, fresh=arguments.fresh, command=[os.path.basename(sys.argv[0]), *sys.argv[1:]])
    except SweepStopped as stopped:
        print(stopped, file=sys.stderr)
        _write_page(sweep.directory)
        with suppress(OSError):
            sys.stderr.flush()
        sys.exit(STOPPED)
    print_sweep(directory)
    if failed := [trial.name for trial in directory.trials if trial.state == "failed"]:
        raise SweepError(f"{', '.join(failed)} failed, as the table says; the same command tries them again")


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = config_parser("tune", __doc__ or "")
    command_line.epilog = "\n".join(
        ["keys of the sweep's file:", *describe_keys(SweepConfig), "", command_line.epilog or ""]
    )
    command_line.add_argument(
        "--sweep",
        required=True,
        metavar="FILE",
        help="YAML file of the search; sweep.key=value lies over it, such as sweep.num_samples=20",
    )
    command_line.add_argument("--dry-run", action="store_true", help="check every trial, print the plan, start nothing")
    command_line.add_argument("--fresh", action="store_true", help="throw away what an earlier sweep of this name left")
    return command_line


if __name__ == "__main__":
    run_verb(main, parser())
