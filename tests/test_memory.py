import re

import pytest
import torch

from raysrec.config.loading import validate
from raysrec.history import History
from raysrec.memory import activation_bytes, estimate
from raysrec.models import MODELS, build_model
from raysrec.prepare import prepare


@pytest.fixture
def made(tmp_path):
    """A config, and its prepared data of 60 users and 40 items."""

    def make(name="sasrec", **sections):
        data = {"prepared": str(tmp_path), "synthetic": {"num_users": 60, "num_items": 40}}
        config = validate({"model": {"name": name}, "data": data | sections.pop("data", {}), **sections})
        return config, prepare(config.data)

    return make


def parts(config, data):
    return {part.what: part.bytes for part in estimate(config, data).parts}


def supervision(name):
    return {"bert4rec": "cloze"}.get(name, "last_position")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_is_estimated_and_left_as_it_was(made, name):
    config, data = made(name, train={"supervision": supervision(name)})
    model = build_model(config.model, data.manifest.num_items, data.manifest.num_users).eval()
    state = torch.get_rng_state()
    found = estimate(config, data, model)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert {part.what: part.bytes for part in found.parts}["weights"] == weights
    assert found.bytes == sum(part.bytes for part in found.parts)
    assert re.match(r"about [\d.]+ (MB|GB) a worker: ", str(found))


def test_what_a_layer_keeps_is_counted_once_and_weights_are_not():
    model = build_model(validate({"model": {"name": "sasrec"}, "data": {"synthetic": {}}}).model, 40)
    length, rows = 50, 4
    items = torch.arange(rows * length).reshape(rows, length) % 40 + 1
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        saved.append(tensor)
        return tensor

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train().encode(History(items, items, torch.full((rows,), length)))
    weights = sum(kept.get(p.untyped_storage().data_ptr(), 0) for p in model.parameters())
    assert weights > 0
    states = rows * length * 4 * model.item_vectors().shape[1]
    assert activation_bytes(model, length) * rows * length == pytest.approx(
        sum(kept.values()) - weights + states, rel=0.1
    )


def test_each_setting_lowers_its_part(made):
    config, data = made(train={"micro_batch_tokens": 16_384, "batch_targets": 16_384})
    before = parts(config, data)
    for section, what in (
        ({"train": {"micro_batch_tokens": 4_096, "batch_targets": 16_384}}, "activations"),
        ({"data": {"shuffle_interactions": 100}}, "histories that wait"),
        ({"engine": {"name": "deepspeed", "zero_stage": 1}, "scale": {"workers": 2}}, "optimizer"),
        ({"engine": {"name": "deepspeed", "zero_stage": 2}, "scale": {"workers": 2}}, "gradients"),
        ({"engine": {"name": "deepspeed", "zero_stage": 3}, "scale": {"workers": 2}}, "weights"),
        ({"train": {"batch_targets": 64}}, "loss"),
    ):
        assert parts(*made(**section))[what] <= before[what] / 1.9, what


def test_the_largest_part_is_lowered_first(made):
    config, data = made("recgrela", train={"micro_batch_tokens": 10**6, "batch_targets": 10**6})
    assert estimate(config, data).settings()[:2] == ["train.micro_batch_tokens", "train.batch_targets"]


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"name": "softmax"}, False),
        ({"name": "auto"}, False),
        ({"name": "gbce"}, False),  # it takes a number of its own
        ({"name": "gbce", "negatives": 16}, True),
    ],
)
def test_only_a_number_of_negatives_that_is_set_can_be_lowered(made, loss, expected):
    settings = estimate(*made(loss=loss)).settings()
    assert "train.batch_targets" in settings
    assert ("loss.negatives" in settings) == expected


def test_cloze_encodes_as_many_positions_as_its_targets_need(made):
    few = {"batch_targets": 64, "micro_batch_tokens": 10**6}
    hidden = parts(*made("bert4rec", train={"supervision": "cloze", "cloze": {"hidden_share": 0.5}} | few))
    alone = parts(*made("bert4rec", train={"supervision": "last_position"} | few))
    assert hidden["activations"] < alone["activations"] / 2
