"""Our models against the authors' own code: the same random weights and histories give the same numbers.

tests/golden/ holds the arrays and says in provenance.json where they come from; `tools/make_golden.py` makes them.
Here stands what the authors' parameters are called with us, and in which of a model's forms the two must agree.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raysrec.history import History
from raysrec.models import MODELS, SequenceModel, build_model

GOLDEN = Path(__file__).parent / "golden"
NUM_ITEMS = 30

NORM_AND_TABLE = {r"^item_embedding\b": "embedding.table", r"^LayerNorm\b|^layer_norm\b": "embedding.norm"}
MAMBA = {
    r"\.in_proj\b": ".into",
    r"\.conv1d\.(weight|bias)": r".conv_\1",
    r"\.x_proj\b": ".select",
    r"\.dt_proj\b": ".step_size",
    r"\.A_log\b": ".a_log",
    r"\.D\b": ".skip",
    r"\.out_proj\b": ".out",
}
FEED_FORWARD = {
    r"\.ffn\.LayerNorm|\.ffn\.layer_norm": ".feed_forward_norm",
    r"\.ffn\.w_1": ".feed_forward.expand",
    r"\.ffn\.w_2": ".feed_forward.contract",
}
TRANSFORMER = {
    **NORM_AND_TABLE,
    r"^position_embedding": "embedding.positions",
    r"^trm_encoder\.layer": "layers",
    r"\.multi_head_attention\.LayerNorm": ".attention_norm",
    r"\.multi_head_attention\.dense": ".attention.output",
    r"\.multi_head_attention\.": ".attention.",
    r"\.feed_forward\.LayerNorm": ".feed_forward_norm",
    r"\.dense_1": ".expand",
    r"\.dense_2": ".contract",
}
OURS = {
    "mamba4rec": {
        **NORM_AND_TABLE,
        r"^mamba_layers": "layers",
        **MAMBA,
        **FEED_FORWARD,
        r"(\d)\.LayerNorm": r"\1.mamba_norm",
    },
    "recgrela": {
        **NORM_AND_TABLE,
        r"^GRELA_block": "blocks",
        r"\.LayerNorm1": ".attention_norm",
        r"\.act_proj": ".attention.gate",
        r"\.in_proj": ".attention.input",
        r"\.attn\.(query|key)": r".attention.\1",
        r"\.attn\.conv1d\.(weight|bias)": r".attention.conv_\1",
        r"\.out_proj": ".attention.output",
        r"\.LayerNorm2": ".mlp_norm",
        r"\.mlp\.fc1": ".mlp.expand",
        r"\.mlp\.fc2": ".mlp.contract",
    },
    "lrurec": {
        r"^embedding\.token": "embedding.table",
        r"^embedding\.layer_norm": "embedding.norm",
        r"^model\.bias": "bias",
        r"^model\.lru_blocks": "layers",
        r"\.lru_layer\.layer_norm": ".unit_norm",
        r"\.lru_layer\.in_proj": ".unit.into",
        r"\.lru_layer\.out_proj": ".unit.out",
        r"\.lru_layer\.(\w+_log)": r".unit.\1",
        r"\.feed_forward\.layer_norm": ".feed_forward_norm",
        r"\.w_1": ".expand",
        r"\.w_2": ".contract",
    },
    "sasrec": TRANSFORMER,
    "eulerformer": {
        **TRANSFORMER,
        r"^rotary_embedding": "embedding.turns",
        r"\.euler\.delta": ".angle_scale",
        r"\.euler\.b": ".query_angle",
        r"\.w$": ".contrast_weights",
    },
    "sigma": {
        **NORM_AND_TABLE,
        r"^mamba_layers": "layers",
        r"\.gmamba\.": ".mixture.",
        r"\.mixture\.conv1d": ".mixture.conv",
        r"\.dense1": ".straight",
        r"\.dense2": ".turned",
        r"\.selective_gate_si\.1": ".gate_silu",
        r"\.selective_gate_sig\.1": ".gate_sigmoid",
        r"\.combining_weights": ".shares",
        r"\.projection": ".output",
        **MAMBA,
        **FEED_FORWARD,
        r"(\d)\.LayerNorm": r"\1.mixture_norm",
    },
    "recblr": {
        **NORM_AND_TABLE,
        r"^recurrent_layers": "layers",
        r"\.behavior_modeling\.": ".block.",
        r"\.input\b": ".into",
        r"\.conv1d\.(weight|bias)": r".conv_\1",
        r"\.Lambda": ".decay",
        r"\.output\b": ".out",
        **FEED_FORWARD,
        r"(\d)\.layer_norm": r"\1.block_norm",
    },
}
"""Per model, parts of the authors' names of parameters and what they are called here; applied in this order."""

SIZES = {
    "mamba4rec": {"dim": 16, "d_state": 8},
    "recgrela": {"dim": 16, "mlp_dim": 64},
    "lrurec": {"dim": 16},
    "recblr": {"dim": 16},
    "sasrec": {"dim": 16, "mlp_dim": 32},
    "eulerformer": {"dim": 16, "mlp_dim": 32, "contrast_weight": 1.0},
    "sigma": {"dim": 16, "d_state": 8, "max_length": 50},
}
"""Per model, the settings of tests/golden/provenance.json in our words."""


def model_of(case: str, **settings: Any) -> SequenceModel:
    """Our model with the weights of a case."""
    name = case.partition("-")[0]
    arrays = np.load(GOLDEN / f"{case}.npz")
    weights = {key.removeprefix("weights/"): torch.from_numpy(arrays[key]) for key in arrays if "weights/" in key}
    config = MODELS[name].Config.model_validate({"name": name, "max_length": 12, **SIZES[name], **settings})
    model = build_model(config, NUM_ITEMS).eval()
    there = model.state_dict()
    renamed = in_our_words(name, weights)
    # The authors' short convolutions have a middle dimension of size one.
    model.load_state_dict({key: x.squeeze(1) if x.ndim > there[key].ndim else x for key, x in renamed.items()})
    return model


def in_our_words(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under our names."""
    renamed = {}
    for key, x in cut(name, weights).items():
        for theirs, ours in OURS[name].items():
            key = re.sub(theirs, ours, key)
        assert key not in renamed
        renamed[key] = x
    return renamed


def cut(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that the authors keep in one piece and we do not, in our pieces; still under the authors' names."""
    pieces = {}
    for key, x in weights.items():
        if key.endswith(".euler.alpha"):  # angles of positions, which we compute
            continue
        if name == "recgrela" and ".qk." in key:
            pieces |= {key.replace(".qk.", part): y for part, y in zip((".query.", ".key."), x.chunk(2), strict=True)}
        elif name == "lrurec" and ".params_log" in key:
            parts = ("decay_log", "angle_log", "gain_log")
            pieces |= {key.replace("params_log", part): y for part, y in zip(parts, x, strict=True)}
        elif name == "lrurec" and ".in_proj." in key:  # real and imaginary part of each channel in turn
            pieces[key] = torch.stack([x.real, x.imag], dim=1).flatten(0, 1)
        elif name == "lrurec" and ".out_proj.weight" in key:  # Re(C h) = Re C Re h - Im C Im h
            pieces[key] = torch.stack([x.real, -x.imag], dim=2).flatten(1)
        else:
            pieces[key] = x.real
    return pieces


def history_of(case: str, *, full: bool = False) -> History:
    """The histories of a case, or those of them without padding."""
    arrays = np.load(GOLDEN / f"{case}.npz")
    items, lengths = torch.from_numpy(arrays["items"]), torch.from_numpy(arrays["lengths"])
    rows = lengths == items.shape[1] if full else slice(None)
    return History(items[rows], torch.zeros_like(items[rows]), lengths[rows])


def answer_of(case: str, key: str) -> Tensor:
    return torch.from_numpy(np.load(GOLDEN / f"{case}.npz")[key])


@torch.no_grad()
def scores_of(model: SequenceModel, history: History) -> Tensor:
    scores = model.read(history) @ model.item_vectors().T
    bias = model.item_bias()
    return scores if bias is None else scores + bias


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def assert_agrees(model: SequenceModel, case: str) -> None:
    """At every real position, and in the score of every item."""
    history = history_of(case)
    assert_close(model.encode(history)[history.mask()], answer_of(case, "states")[history.mask()])
    assert_close(scores_of(model, history), answer_of(case, "scores"))


@torch.no_grad()
def assert_agrees_where_read(model: SequenceModel, case: str) -> None:
    """After the last item of histories without padding."""
    history = history_of(case, full=True)
    assert_close(scores_of(model, history), answer_of(case, "scores")[: len(history.items)])


def assert_agrees_in_a_shorter_batch(model: SequenceModel, case: str) -> None:
    """Without the longest history and the padding that it makes of others; the authors pad to `max_length` always."""
    past = history_of(case)
    longest = int(past.lengths[1])
    shorter = History(past.items[1:, :longest], past.times[1:, :longest], past.lengths[1:])
    assert_close(scores_of(model, shorter), answer_of(case, "scores")[1:])


@pytest.mark.parametrize(("case", "num_layers"), [("mamba4rec", 1), ("mamba4rec-2-layers", 2)])
def test_mamba4rec_is_the_authors_model_with_the_librarys_block(case: str, num_layers: int) -> None:
    assert_agrees(model_of(case, num_layers=num_layers), case)


@pytest.mark.parametrize(("case", "num_blocks"), [("recgrela", 2), ("recgrela-1-block", 1)])
def test_recgrela_unmasked_is_the_authors_model(case: str, num_blocks: int) -> None:
    assert_agrees(model_of(case, num_blocks=num_blocks, form="unmasked"), case)


def test_recgrela_unmasked_is_the_authors_model_in_a_batch_of_shorter_histories() -> None:
    assert_agrees_in_a_shorter_batch(model_of("recgrela", num_blocks=2, form="unmasked"), "recgrela")


@pytest.mark.parametrize(("case", "num_blocks"), [("recgrela", 2), ("recgrela-1-block", 1)])
def test_recgrela_with_masked_padding_is_the_authors_model_where_there_is_none(case: str, num_blocks: int) -> None:
    model, history = model_of(case, num_blocks=num_blocks, form="bidirectional"), history_of(case, full=True)
    with torch.no_grad():
        assert_close(model.encode(history), answer_of(case, "states")[: len(history.items)])


def test_recgrela_causal_with_one_block_is_the_authors_model_where_it_is_read_and_nothing_is_padded() -> None:
    assert_agrees_where_read(model_of("recgrela-1-block", num_blocks=1, form="causal"), "recgrela-1-block")


def test_lrurec_is_the_authors_model_which_pads_on_the_left_and_masks() -> None:
    assert_agrees(model_of("lrurec"), "lrurec")


def test_recblr_is_the_authors_model_where_their_scan_needs_no_padding() -> None:
    assert_agrees(model_of("recblr-length-16", max_length=16), "recblr-length-16")


def test_recblr_padded_to_a_power_of_two_is_the_authors_model() -> None:
    assert_agrees(model_of("recblr", pad_to_power_of_two=True), "recblr")


def test_recblr_padded_to_a_power_of_two_is_the_authors_model_in_a_batch_of_shorter_histories() -> None:
    assert_agrees_in_a_shorter_batch(model_of("recblr", pad_to_power_of_two=True), "recblr")


def test_recblr_starts_from_nothing_and_the_authors_from_what_padding_left() -> None:
    model, history = model_of("recblr"), history_of("recblr")
    difference = (scores_of(model, history) - answer_of("recblr", "scores")).abs().amax(dim=1)
    assert (difference > 1e-2).all()


def test_sasrec_is_recboles() -> None:
    assert_agrees(model_of("sasrec"), "sasrec")


def test_eulerformer_is_the_authors_model() -> None:
    assert_agrees(model_of("eulerformer"), "eulerformer")


def test_eulerformers_contrast_is_the_authors_where_nothing_is_padded_or_dropped() -> None:
    model = model_of("eulerformer", dropout=0.0, attention_dropout=0.0, dropped_angles=0.0).train()
    model.encode(history_of("eulerformer", full=True))
    penalty = model.penalty()
    assert penalty is not None
    # Theirs is the mean over all positions of a batch; of full rows that is the mean of the rows' means.
    assert_close(penalty.mean(), answer_of("eulerformer", "penalty_of_full_rows"))


@pytest.mark.parametrize(("case", "num_layers"), [("sigma", 1), ("sigma-2-layers", 2)])
def test_sigma_unmasked_is_the_authors_model(case: str, num_layers: int) -> None:
    assert_agrees(model_of(case, num_layers=num_layers, form="unmasked"), case)


def test_sigma_unmasked_is_the_authors_model_in_a_batch_of_shorter_histories() -> None:
    assert_agrees_in_a_shorter_batch(model_of("sigma", form="unmasked"), "sigma")


def test_sigma_unmasked_is_the_code_of_the_authors_own_repository_at_the_one_length_that_this_takes() -> None:
    assert_agrees(model_of("sigma-length-16", form="unmasked", max_length=16), "sigma-length-16")


def test_sigma_with_masked_padding_is_the_authors_model_where_there_is_none() -> None:
    assert_agrees_where_read(model_of("sigma"), "sigma")


def test_the_origin_of_every_file_is_known_and_every_file_is_small() -> None:
    provenance = json.loads((GOLDEN / "provenance.json").read_text())
    files = {path.stem: path.stat().st_size for path in GOLDEN.glob("*.npz")}
    assert files.keys() == provenance.keys()
    assert max(files.values()) < 200_000
    for origin in provenance.values():
        assert re.fullmatch(r"[0-9a-f]{40}", origin["commit"])
        assert origin["stand_ins"]
