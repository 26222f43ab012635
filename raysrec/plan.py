"""What a configuration will do, in words and numbers, before anything starts."""

from collections.abc import Iterator

from tabulate import tabulate

from raysrec.cluster.autoscaler import to_come
from raysrec.cluster.bundles import asked_for, scale_to_train
from raysrec.cluster.nodes import refuse_fleeting
from raysrec.cluster.placement import room_in_words
from raysrec.cluster.resources import machines
from raysrec.cluster.runtime import in_cluster, ray_session, threads_per_worker, wants_gpu
from raysrec.config import ScaleConfig
from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import positions_per_target, targets_per_epoch
from raysrec.data.manifest import Manifest
from raysrec.data.prepared import PreparedData
from raysrec.losses import chunk_sizes
from raysrec.memory import estimate
from raysrec.models import SequenceModel, build_model
from raysrec.objective import choose_loss
from raysrec.ops import kernels
from raysrec.run_directory import RunError
from raysrec.tracking.mlflow_run import require_mlflow


def refuse_impossible(config: RunConfig) -> None:
    """Refuse, before anything starts, what cannot be trained.

    Raises:
        RunError: There are more workers than streams.
        ClusterError: What it writes would go with the job.
        TrackingError: The configuration names an MLflow server, and MLflow is not installed.
    """
    if config.scale.max_workers > config.data.num_streams:
        raise RunError(
            f"scale.workers={config.scale.max_workers} exceeds data.num_streams={config.data.num_streams}, and a "
            "stream is served by one worker; raise data.num_streams (this changes the batches) or lower scale.workers"
        )
    refuse_fleeting(config)
    require_mlflow(config)


def plan_here(config: RunConfig, data: PreparedData | None) -> str:
    """The plan, and where there is a cluster, whether it has room for that or ever will; starts nothing."""
    if not in_cluster():
        return plan(config, data, use_gpu=config.scale.device == "cuda")
    with ray_session(config.scale):
        use_gpu = wants_gpu(config.scale)
        cluster = room_in_words(scale_to_train(config), machines(), to_come(), use_gpu=use_gpu)
        return plan(config, data, use_gpu=use_gpu, cluster=cluster)


def plan(config: RunConfig, data: PreparedData | None, *, use_gpu: bool = False, cluster: str = "") -> str:
    """The plan as a table of two columns.

    Args:
        config: The run.
        data: Its prepared data; None where that has not been made yet, and then what depends on it is left open.
        use_gpu: Will workers have GPUs?
        cluster: What the cluster has for it, if there is one.
    """
    rows = [("run", str(config.run_directory)), *_data_rows(config, data), *_work_rows(config, data, use_gpu)]
    if cluster:
        rows.append(("cluster", cluster))
    return tabulate(rows, tablefmt="plain")


def _data_rows(config: RunConfig, data: PreparedData | None) -> Iterator[tuple[str, str]]:
    if data is None:
        yield "data", f"{config.data.name}: not prepared yet; python -m raysrec.prepare makes it and fills in this plan"
        return
    manifest = data.manifest
    yield "data", f"{manifest.name} in {data.directory}"
    yield "users", f"{manifest.num_users:,}"
    yield "items", f"{manifest.num_items:,}"
    yield "interactions", f"{manifest.num_interactions:,}"
    yield "split", str(manifest.split)
    yield "ranked", f"{manifest.num_ranked('validation'):,} users to validate, {manifest.num_ranked('test'):,} to test"
    num_targets = targets_per_epoch(data, config)
    yield "targets per epoch", f"{num_targets:,}"
    steps = max(1, round(num_targets / config.train.batch_targets))
    all_steps, most = steps * config.train.epochs, config.train.max_steps
    ends = f"; train.max_steps ends it after {most:,}" if most and most < all_steps else ""
    yield "steps", f"about {steps:,} an epoch, {all_steps:,} in {config.train.epochs} epochs{ends}"


def _work_rows(config: RunConfig, data: PreparedData | None, use_gpu: bool) -> Iterator[tuple[str, str]]:
    train, device = config.train, "cuda" if use_gpu else "cpu"
    if data is not None:
        num_items = data.manifest.num_items
        model = build_model(config.model, num_items, data.manifest.num_users)
        parameters = sum(p.numel() for p in model.parameters())
        yield "model", f"{config.model.name}, {parameters:,} parameters, {'causal' if model.causal else 'not causal'}"
        yield "loss", _loss(config, model, data.manifest, device)
        yield "memory", str(estimate(config, data, model, on_gpu=use_gpu))
    else:
        yield "model", config.model.name
    cut = f", windows {train.windows}" if train.supervision != "last_position" else ""
    yield "supervision", f"{train.supervision}{cut}, histories of up to {config.model.max_length} items"
    stage = f", ZeRO stage {config.engine.zero_stage}" if config.engine.name == "deepspeed" else ""
    precision = config.engine.precision
    chosen = ("bfloat16 where the GPU has it" if use_gpu else "float32") if precision == "auto" else precision
    yield "engine", f"{config.engine.name}{stage}, {chosen}"
    threads = "" if use_gpu else f", {threads_per_worker(config.scale)} threads each"
    yield "workers", f"{_workers(config.scale)} on {device}{threads}, {_streams(config.data.num_streams, data)}"
    yield "asks for", asked_for(config, use_gpu=use_gpu)
    yield "kernels", "; ".join(f"{name}: {choice}" for name, choice in kernels(device).items())


def _streams(number: int, data: PreparedData | None) -> str:
    """How many there are, and how many of them make every batch smaller by their part."""
    groups = number if data is None else sum(group.weight > 0 for group in data.row_groups())
    if groups >= number:
        return f"{number} streams"
    return f"{number} streams, of which {number - groups} have nothing to read (data.num_streams={groups} is enough)"


def _workers(scale: ScaleConfig) -> str:
    least, most = scale.min_workers, scale.max_workers
    return f"{most}" if least == most else f"{least} to {most}"


def _loss(config: RunConfig, model: SequenceModel, manifest: Manifest, device: str) -> str:
    positions, num_items = positions_per_target(manifest, config), manifest.num_items
    chosen, reason = choose_loss(config.loss, model, positions_per_target=positions, device=device)
    if chosen.name != "softmax":
        in_batch = chosen.sampling == "in_batch"
        drawn = (
            "the batch's own targets" if in_batch else f"negatives per target: {chosen.negatives:,} {chosen.sampling}"
        )
        return f"{chosen.name}, {drawn} ({reason})"
    chunks = chunk_sizes(config.train.batch_targets // config.scale.max_workers, num_items, on_gpu=device == "cuda")
    return (
        f"softmax over {num_items:,} items in chunks of {chunks.targets:,} x {chunks.items:,}: "
        f"{_megabytes(4 * chunks.scores)} beside {_megabytes(4 * num_items * config.model.dim)} of gradient ({reason})"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
