"""What the authors' parameters of tests/golden/ are called with us, and our models with those weights."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raysrec.models import MODELS, SequenceModel, build_model

GOLDEN = Path(__file__).parent / "golden"
NUM_ITEMS, NUM_USERS = 30, 6

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
    "linrec": TRANSFORMER,
    "bert4rec": {**TRANSFORMER, r"^output_ffn": "head", r"^output_ln": "head_norm", r"^output_bias": "bias"},
    "gru4rec": {r"^item_embedding": "table", r"^gru_layers": "gru", r"^dense": "output"},
    "narm": {
        r"^item_embedding": "table",
        r"^a_1": "key",
        r"^a_2": "query",
        r"^v_t": "weigh",
        r"^b\b": "output",
    },
    "caser": {
        r"^item_embedding": "items",
        r"^user_embedding": "users.table",
        r"^conv_v": "vertical",
        r"^conv_h": "horizontal",
        r"^fc1": "first",
        r"^fc2": "second",
    },
    "recmamba": {r"^item_emb": "table", r"^pos_emb": "positions.table", r"^mamba1": "mamba", **MAMBA},
    "echomamba4rec": {
        **NORM_AND_TABLE,
        r"^mamba_layers": "layers",
        r"\.filter_layer\.complex_weight": ".filter.spectrum",
        r"\.filter_layer\.LayerNorm": ".filter.norm",
        r"\.norms_(forward|backward)\.(\d+)": r".pairs.\2.\1s_norm",
        r"\.mamba_(forward|backward)s\.(\d+)": r".pairs.\2.\1s",
        **MAMBA,
        r"\.glu\.fc1": ".gated.expand",
        r"\.glu\.fc2": ".gated.contract",
        r"\.glu\.LayerNorm": ".gated.norm",
    },
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

SIZES: dict[str, dict[str, Any]] = {
    "mamba4rec": {"dim": 16, "d_state": 8},
    "recgrela": {"dim": 16, "mlp_dim": 64},
    "lrurec": {"dim": 16},
    "recblr": {"dim": 16},
    "sasrec": {"dim": 16, "mlp_dim": 32},
    "eulerformer": {"dim": 16, "mlp_dim": 32, "contrast_weight": 1.0},
    "sigma": {"dim": 16, "d_state": 8, "max_length": 50},
    "linrec": {"dim": 16, "num_heads": 2, "mlp_dim": 32},
    "bert4rec": {"dim": 16, "mlp_dim": 32},
    "recmamba": {"dim": 64},
    "gru4rec": {"dim": 16, "hidden_dim": 24, "num_layers": 2},
    "narm": {"dim": 16, "hidden_dim": 24},
    "caser": {"dim": 16, "num_horizontal": 3, "regularisation": 0.1},
    "echomamba4rec": {"dim": 16, "d_state": 8},
}
"""Per model, the settings of tests/golden/provenance.json in our words."""


def model_of(case: str, **settings: Any) -> SequenceModel:
    """Our model with the weights of a case."""
    name = case.partition("-")[0]
    arrays = np.load(GOLDEN / f"{case}.npz")
    weights = {key.removeprefix("weights/"): torch.from_numpy(arrays[key]) for key in arrays if "weights/" in key}
    config = MODELS[name].Config.model_validate({"name": name, "max_length": 12, **SIZES[name], **settings})
    model = build_model(config, NUM_ITEMS, NUM_USERS).eval()
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
    pieces: dict[str, Tensor] = {}
    for key, x in (heights_in_one_table(weights) if name == "caser" else weights).items():
        if key.endswith(".euler.alpha") or ".multi_query_" in key:  # angles, which we compute; a block never called
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
        elif key.endswith(".complex_weight"):
            pieces[key] = x[0]
        else:
            pieces[key] = x.real
    return pieces


def heights_in_one_table(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Caser's weights, whose horizontal filters lie one height after the other with us."""
    heights = range(len(weights["conv_v.weight"][0, 0]))
    rows = [weights[f"conv_h.{i}.weight"][:, 0].transpose(0, 1) for i in heights]
    together = {
        "conv_v.weight": weights["conv_v.weight"].flatten(1),
        "conv_h.weight": torch.cat(rows),
        "conv_h.bias": torch.stack([weights[f"conv_h.{i}.bias"] for i in heights]),
    }
    return {key: x for key, x in weights.items() if not key.startswith("conv_h.")} | together
