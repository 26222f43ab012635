"""About how much memory a training worker needs, and for what: an estimate, to plan by and to explain failures with.

What can be counted is counted; what the encoder keeps for its backward pass is measured on a few rows. Not in it: what
allocators hold in reserve, kernels' scratch memory, and that bfloat16 halves some of it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from raysrec.config.run import RunConfig
from raysrec.data.batching.facts import positions_per_target
from raysrec.data.prepared import PreparedData
from raysrec.history import History
from raysrec.losses import bytes_at_once, chunk_sizes
from raysrec.models import SequenceModel, build_model
from raysrec.objective import choose_loss

PROCESS_BYTES = 600 * 10**6
"""A worker that has imported everything and done nothing."""

SHUFFLED_BYTES = 40
"""An interaction that waits to be shuffled."""

ROWS = 4
"""Histories on which the encoder is measured."""


@dataclass(frozen=True)
class Part:
    """Memory for one thing."""

    what: str
    bytes: int
    settings: tuple[str, ...] = ()
    """Keys of the configuration that lower it."""


@dataclass(frozen=True)
class Estimate:
    """What a worker needs; as text, all parts of it."""

    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Of all parts together."""
        return sum(part.bytes for part in self.parts)

    def __str__(self) -> str:
        parts = [f"{part.what} {_size(part.bytes)}" for part in self.parts if part.bytes]
        return f"about {_size(self.bytes)} a worker: {', '.join(parts)}"

    def settings(self) -> list[str]:
        """What to lower, the largest part first."""
        largest_first = sorted(self.parts, key=lambda part: -part.bytes)
        return list(dict.fromkeys(key for part in largest_first for key in part.settings))


def estimate(
    config: RunConfig, data: PreparedData, model: SequenceModel | None = None, *, on_gpu: bool = False
) -> Estimate:
    """What a worker of this run needs while it trains, on its GPU and beside it.

    Args:
        config: The run.
        data: Its prepared data.
        model: Its model, if it is at hand.
        on_gpu: Does the worker have a GPU?
    """
    model = model or build_model(config.model, data.manifest.num_items, data.manifest.num_users)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    shares = [config.scale.min_workers if _is_sharded(config, stage) else 1 for stage in (3, 2, 1)]
    tokens = min(config.train.micro_batch_tokens, _tokens_of_a_step(config, data))
    per_stream = data.manifest.num_interactions // config.data.num_streams
    streams = -(-config.data.num_streams // config.scale.min_workers)
    waiting = min(config.data.shuffle_interactions, per_stream) * streams
    micro_batch = ("train.micro_batch_tokens", "train.batch_targets")
    return Estimate(
        (
            Part("weights", weights // shares[0], ("model.dim",)),
            Part("gradients", weights // shares[1], ("model.dim",)),
            Part("optimizer", 2 * weights // shares[2], ("model.dim",)),
            Part("the copy that is validated, and the best", 2 * weights, ("model.dim",)),
            Part("the checkpoint while it is saved", 3 * weights // shares[2], ("model.dim",)),
            Part("activations", int(activation_bytes(model, config.model.max_length) * tokens), micro_batch),
            _loss(config, data, model, tokens, on_gpu=on_gpu),
            Part("histories that wait", waiting * SHUFFLED_BYTES, ("data.shuffle_interactions",)),
            Part("the process", PROCESS_BYTES),
        )
    )


def activation_bytes(model: SequenceModel, length: int) -> float:
    """Bytes that the encoder keeps for its backward pass, for each position of histories of this length."""
    device = model.item_vectors().device
    num_items = len(model.item_vectors()) - 1
    positions = torch.arange(ROWS * length, device=device).reshape(ROWS, length)
    lengths = torch.full((ROWS,), length, device=device)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)  # so that no other tensor takes its address
        return tensor

    held: list[Tensor] = []
    was_training = model.training
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, _same):
        states = model.train().encode(History(positions % num_items + 1, positions, lengths, torch.ones_like(lengths)))
    model.train(was_training)
    return (sum(kept.values()) + states.nbytes) / (ROWS * length)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _is_sharded(config: RunConfig, stage: int) -> bool:
    return config.engine.name == "deepspeed" and config.engine.zero_stage >= stage


def _tokens_of_a_step(config: RunConfig, data: PreparedData) -> int:
    """Positions that a worker encodes in a step, where micro-batches would hold more."""
    length = min(config.model.max_length, data.manifest.longest_history)
    per_target = positions_per_target(data.manifest, config)
    return max(length, math.ceil(-(-config.train.batch_targets // config.scale.min_workers) * per_target))


def _loss(config: RunConfig, data: PreparedData, model: SequenceModel, tokens: int, *, on_gpu: bool) -> Part:
    positions, device = positions_per_target(data.manifest, config), "cuda" if on_gpu else "cpu"
    chosen = choose_loss(config.loss, model, positions_per_target=positions, device=device).config
    table = model.item_vectors().shape
    targets = min(tokens, -(-config.train.batch_targets // config.scale.min_workers))
    if chosen.name == "softmax":
        scores = 2 * 4 * chunk_sizes(targets, table[0] - 1, on_gpu=on_gpu).scores
        return Part("loss", scores, ("train.batch_targets",))
    negatives = targets if chosen.sampling == "in_batch" else chosen.negatives
    shared = chosen.name == "sampled_softmax"
    needed = bytes_at_once(targets, negatives, table, shared=shared, on_gpu=on_gpu)
    # A number that is not set is not there to be lowered.
    return Part("loss", needed, ("train.batch_targets", *(["loss.negatives"] if config.loss.negatives else [])))


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 10**9 else f"{count / 1e6:,.1f} MB"
