"""Train a model: prepare the data if needed, train on Ray workers, rank the held-out items, print the table.

This is what the driver does; what every worker does stands in `worker.py`. The same command goes on with a run that
was interrupted.
"""

import argparse
from pathlib import Path

from safetensors.torch import load_file

from raysrec.checkpoint import RunDirectory, RunError, TrainingState
from raysrec.command_line import config_parser, load, run_verb
from raysrec.config import RunConfig
from raysrec.data.catalog import PreparedData
from raysrec.engine import Weights
from raysrec.evaluate import evaluate
from raysrec.objective import choose_loss
from raysrec.plan import plan
from raysrec.prepare import find_prepared, prepare
from raysrec.progress import Mailbox, shown
from raysrec.report import print_runs
from raysrec.resources import wait_for_room
from raysrec.runtime import ray_session, wants_gpu
from raysrec.worker import train_worker


def train(config: RunConfig, *, fresh: bool = False) -> RunDirectory:
    """Train, rank, and return the finished run's directory.

    Args:
        config: The run.
        fresh: Throw away what an earlier run of this name left.

    Raises:
        RunError: The directory holds a run of another configuration, or there are more workers than streams.
    """
    _refuse_idle_workers(config)
    run = RunDirectory(config.run_directory)
    data = prepare(config.data, scale=config.scale)
    if not data.manifest.num_targets:
        raise RunError(
            f"{config.data.name}: every user has 3 interactions, of which two are held out and the first has no past; "
            "nothing is left to learn from"
        )
    if fresh and run.path.exists():
        RunDirectory.open(run.path).path.delete()
    _refuse_other_config(run, config)
    if run.metrics_file.is_file():
        print(f"{run.path} is finished; --fresh trains it again")
        return run
    run.start(config, data.manifest.fingerprint)
    with ray_session(config.scale):
        wait_for_room(config.scale)
        use_gpu = wants_gpu(config.scale)
        print(plan(config, data, use_gpu=use_gpu), flush=True)
        state, weights = _train_on_workers(run, data, config)
        run.save_model(config, data.manifest.num_items, weights, num_users=data.manifest.num_users)
        splits = evaluate(run, data, config)
    run.save_metrics(
        {
            "data": config.data.name,
            "model": config.model.name,
            "prepared": str(data.directory.absolute()),
            "split": data.manifest.split.model_dump(mode="json"),
            "evaluate": config.evaluate.model_dump(mode="json"),
            "training": {
                "supervision": config.train.supervision,
                "loss": choose_loss(config.loss, run.load_model(), device="cuda" if use_gpu else "cpu").config.name,
                "workers": config.scale.workers,
                "epochs": state.epoch,
                "steps": state.step,
                "best_epoch": state.best_epoch,
                "seconds": state.elapsed_s,
                "seconds_to_best": state.best_elapsed_s,
            },
            "splits": splits,
        }
    )
    return run


def _train_on_workers(run: RunDirectory, data: PreparedData, config: RunConfig) -> tuple[TrainingState, Weights]:
    """Run `train_worker` on every worker while the driver shows its progress; the state and best weights at the end."""
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    place = run.path.absolute()
    mailbox_name = f"raysrec-mailbox-{place}"
    mailbox = ray.remote(num_cpus=0)(Mailbox).options(name=mailbox_name).remote()
    use_gpu = wants_gpu(config.scale)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "config": config.model_dump_json(),
            "prepared": str(data.directory.absolute()),
            "checkpoints": str(place / "checkpoints"),
            "mailbox": mailbox_name,
        },
        # Counts are exchanged on the CPU and gradients where they are.
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=config.scale.workers, use_gpu=use_gpu),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=place.path,
            storage_filesystem=None if place.is_local else place.filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with shown(mailbox, run.path):
        result = trainer.fit()
    if result.checkpoint is None:
        raise RunError(f"{run.path}: training ended without a checkpoint: {result.error}")
    with result.checkpoint.as_directory() as folder:
        state = TrainingState.model_validate_json((Path(folder) / "state.json").read_text())
        return state, load_file(Path(folder) / "best.safetensors")


def _refuse_idle_workers(config: RunConfig) -> None:
    if config.scale.workers > config.data.num_streams:
        raise RunError(
            f"scale.workers={config.scale.workers} exceeds data.num_streams={config.data.num_streams}, and a stream is "
            "served by one worker; raise data.num_streams (this changes the batches) or lower scale.workers"
        )


def _refuse_other_config(run: RunDirectory, config: RunConfig) -> None:
    """A run goes on only under the configuration it was begun with."""
    if changes := run.other_settings(config):
        raise RunError(
            f"{run.path} holds a run with other settings: {changes}; set storage.name to keep both, or --fresh to "
            "throw the old one away"
        )


def main(arguments: argparse.Namespace) -> None:
    """Train as the command line says and print the table."""
    config = load(arguments.config, arguments.overrides)
    _refuse_idle_workers(config)
    if arguments.dry_run:
        print(plan(config, find_prepared(config.data), use_gpu=config.scale.device == "cuda"))
        return
    run = train(config, fresh=arguments.fresh)
    print_runs([run.path])


def _parser() -> argparse.ArgumentParser:
    parser = config_parser("train", "Train a model and rank every user's held-out item against the whole catalogue.")
    parser.add_argument("--dry-run", action="store_true", help="check the settings, print the plan, start nothing")
    parser.add_argument("--fresh", action="store_true", help="throw away what an earlier run of this name left")
    return parser


if __name__ == "__main__":
    run_verb(main, _parser())
