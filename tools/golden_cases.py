"""Which code of the authors makes which golden values, and what stands in for what cannot run here.

`make_golden.py` runs these cases. A stand-in gives what the models need of a library and no more: kernels that exist
for GPUs only are replaced by their definition, and start-up code of packages is left out.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COMMITS = {
    "TBI805/RecGRELA": "608a39b1da8fbd855f4099226e0f6d9fb890e83b",
    "chengkai-liu/Mamba4Rec": "44a0c8432b34e3b89d46035b10e8525b1bd368dc",
    "chengkai-liu/RecBLR": "d01e5c90a14ff73ab4168edfd0f49de135a39e02",
    "yueqirex/LRURec": "e02a559bd8c42342f5c53d69cefea2589becb22c",
    "ziwliu-cityu/SIMGA": "018d73a858b3fe518df6e19a8c98c24fa54026f8",
    "RUCAIBox/EulerFormer": "7cb5f655dee2e0745d8312bd08bc9056e336e029",
    "nancheng58/RecMamba": "4ff945211e250b4c8740908d5985688ef344c70e",
    "RUCAIBox/RecBole": "7b02be5ec80a88310f2d04a27a82adfcbb5dc211",
    "state-spaces/mamba": "e9594ce1c732d97440f0332fdc43170a2294dbfa",
}

RECBOLE, MAMBA = "RUCAIBox/RecBole", "state-spaces/mamba"

FOR_RECBOLE = (
    "recbole.utils: only its enumerations (their own file), as nothing else of it is used",
    "config and dataset: a dictionary, and an object that knows the number of items",
)
FOR_MAMBA = (
    "mamba_ssm: modules/mamba_simple.py with selective_scan_ref of ops/selective_scan_interface.py in the place of "
    "the CUDA kernel; the package's own __init__ and its Triton kernels are not loaded"
)
FOR_CONVOLUTION = "causal_conv1d: its causal_conv1d_fn by torch, so that the authors' CUDA path runs, with SiLU"


@dataclass(frozen=True)
class Case:
    """One file of golden values: which class, its settings and the histories it is given."""

    name: str
    code: str
    """Repository, file and class, between colons."""
    prepare: "Callable[[Path], None]"
    """Puts what the file imports into `sys.modules`; takes the folder of the checkouts."""
    settings: dict[str, Any]
    stand_ins: tuple[str, ...]
    """What does not run as the authors have it, and what runs instead."""
    libraries: tuple[str, ...] = (RECBOLE,)
    """Other repositories whose code runs too."""
    lengths: tuple[int, ...] = (12, 9, 5, 1)
    seed: int = 20
    constants: tuple[str, ...] = ()
    """Parts of names of parameters that keep their values, for the authors never train them."""

    @property
    def where(self) -> tuple[str, str, str]:
        """Repository, file, class."""
        repository, path, class_name = self.code.split(":")
        return repository, path, class_name


def prepare_recbole(folder: Path) -> None:
    """RecBole's base class and layers as they are, without the package's start-up."""
    recbole = checkout(folder, RECBOLE) / "recbole"
    package("recbole", recbole)
    package("recbole.model", recbole / "model")
    enumerations = vars(load("enumerations", recbole / "utils" / "enum_type.py"))
    stand_in("recbole.utils", **{k: v for k, v in enumerations.items() if k[0] != "_"}, set_color=lambda text, _: text)


def prepare_eulerformer(folder: Path) -> None:
    """RecBole with EulerFormer's `layers.py` in the place of its own, as the authors' README asks for."""
    prepare_recbole(folder)
    stand_in("turtle", forward=None)  # an accidental import of theirs, which needs a display
    load("recbole.model.layers", checkout(folder, "RUCAIBox/EulerFormer") / "EulerFormer_models" / "layers.py")


def prepare_recgrela(folder: Path) -> None:
    """RecBole, the convolution on the authors' CUDA path, and a DropPath that drops nothing."""
    prepare_recbole(folder)
    stand_in("timm.models.layers", DropPath=nn.Identity)
    stand_in("causal_conv1d", causal_conv1d_fn=causal_conv1d)


def prepare_linrec(folder: Path) -> None:
    """RecBole, and the layers that the authors' model imports, without the plots of which they think."""
    prepare_recbole(folder)
    stand_in("matplotlib.pyplot")
    model = checkout(folder, "TBI805/RecGRELA") / "model"
    package("model", model)
    package("model.layers", model / "layers")


def prepare_recblr(folder: Path) -> None:
    """RecBole and the authors' scan without Triton."""
    prepare_recbole(folder)
    stand_in("parallel_scan", parallel_scan=scan)


def prepare_mamba4rec(folder: Path) -> None:
    """RecBole and the Mamba block."""
    prepare_recbole(folder)
    prepare_mamba(folder)


def prepare_mamba(folder: Path) -> None:
    """The Mamba block with its own reference of the scan."""
    library = checkout(folder, MAMBA) / "mamba_ssm"
    package("mamba_ssm", library)
    package("mamba_ssm.ops", library / "ops")
    package("mamba_ssm.modules", library / "modules")
    stand_in("mamba_ssm.ops.triton.layer_norm", _layer_norm_fwd=None)
    interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = interface.selective_scan_ref  # type: ignore[attr-defined]
    block = importlib.import_module("mamba_ssm.modules.mamba_simple")
    sys.modules["mamba_ssm"].Mamba = block.Mamba  # type: ignore[attr-defined]


def prepare_nothing(folder: Path) -> None:
    """The file needs torch and numpy only."""


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """The definition of causal_conv1d_fn: [B D L], each channel by itself, zeros before the first position."""
    assert activation == "silu"
    channels, taps = weight.shape
    return F.silu(F.conv1d(F.pad(x, (taps - 1, 0)), weight[:, None], bias, groups=channels))


def scan(gates: Tensor, tokens: Tensor) -> Tensor:
    """The definition of RecBLR's parallel_scan: h_t = gates_t h_{t-1} + tokens_t along the last dimension."""
    h, states = torch.zeros_like(tokens[..., 0]), []
    for gate, token in zip(gates.unbind(-1), tokens.unbind(-1), strict=True):
        h = gate * h + token
        states.append(h)
    return torch.stack(states, dim=-1)


def checkout(folder: Path, repository: str) -> Path:
    """Where a repository lies."""
    return folder / repository.split("/")[1]


def load(name: str, path: Path) -> types.ModuleType:
    """Import one file under a name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def package(name: str, path: Path) -> None:
    """A package whose modules can be imported, without running its `__init__`."""
    stand_in(name).__path__ = [str(path)]


def stand_in(name: str, **members: Any) -> types.ModuleType:
    """A module with these members, and its parents if they are missing."""
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules:
        stand_in(parent)
    return module


@contextmanager
def modules_for_now() -> Iterator[None]:
    """Forget afterwards what was imported and stood in."""
    before = dict(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - set(before):
            if name.partition(".")[0] in FORGOTTEN or name.startswith("authors_"):
                del sys.modules[name]


FORGOTTEN = {
    *("recbole", "enumerations", "timm", "causal_conv1d", "parallel_scan", "mamba_ssm", "turtle", "matplotlib", "model")
}

_SIZES = {"loss_type": "CE", "hidden_size": 16, "dropout_prob": 0.2}
_MAMBA = {**_SIZES, "d_state": 8, "d_conv": 4, "expand": 2}
_RECGRELA = {**_SIZES, "drop_path": 0.1, "num_heads": 4, "MAX_ITEM_LIST_LENGTH": 12}
_RECBLR = {**_SIZES, "num_layers": 2, "expand": 2, "d_conv": 4}
_LRUREC = {"dataset_code": "ml-1m", "bert_hidden_units": 16, "bert_num_blocks": 2}
_TRANSFORMER = {
    **_SIZES,
    "n_layers": 2,
    "n_heads": 2,
    "inner_size": 32,
    "hidden_act": "gelu",
    "MAX_ITEM_LIST_LENGTH": 12,
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}
_SEQUENTIAL = f"{RECBOLE}:recbole/model/sequential_recommender"
_GRU = {**_SIZES, "embedding_size": 16, "hidden_size": 24, "dropout_probs": [0.25, 0.5]}
_CASER = {**_SIZES, "embedding_size": 16, "nv": 4, "nh": 3, "reg_weight": 0.1, "MAX_ITEM_LIST_LENGTH": 12}
_EULERFORMER = {"euler_bias": True, "init_factor": 1.0, "tep": 1.0, "lamb": 1.0}

_mamba4rec = partial(
    Case,
    code="chengkai-liu/Mamba4Rec:mamba4rec.py:Mamba4Rec",
    prepare=prepare_mamba4rec,
    libraries=(RECBOLE, MAMBA),
    stand_ins=(*FOR_RECBOLE, FOR_MAMBA),
)
_recgrela = partial(
    Case,
    code="TBI805/RecGRELA:model/RecGRELA.py:RecGRELA",
    prepare=prepare_recgrela,
    stand_ins=(*FOR_RECBOLE, "timm: DropPath is the identity, as in evaluation mode", FOR_CONVOLUTION),
)
_recblr = partial(
    Case,
    code="chengkai-liu/RecBLR:RecBLR.py:RecBLR",
    prepare=prepare_recblr,
    settings=_RECBLR,
    stand_ins=(*FOR_RECBOLE, "parallel_scan: the recurrence position by position in the place of the Triton kernel"),
)
_echomamba4rec = partial(_mamba4rec, code="TBI805/RecGRELA:model/EchoMamba4Rec.py:EchoMamba4Rec")
_sigma = partial(_mamba4rec, code="TBI805/RecGRELA:model/SIGMA.py:SIGMA", lengths=(50, 47, 20, 1))

_of_recbole = partial(Case, prepare=prepare_recbole, stand_ins=FOR_RECBOLE, libraries=())

CASES = [
    _mamba4rec("mamba4rec", settings={**_MAMBA, "num_layers": 1}),
    _mamba4rec("mamba4rec-2-layers", settings={**_MAMBA, "num_layers": 2}),
    _recgrela("recgrela", settings={**_RECGRELA, "num_layers": 2}),
    _recgrela("recgrela-1-block", settings={**_RECGRELA, "num_layers": 1}),
    _of_recbole("sasrec", code=f"{_SEQUENTIAL}/sasrec.py:SASRec", settings=_TRANSFORMER),
    _of_recbole("bert4rec", code=f"{_SEQUENTIAL}/bert4rec.py:BERT4Rec", settings={**_TRANSFORMER, "mask_ratio": 0.2}),
    _of_recbole("gru4rec", code=f"{_SEQUENTIAL}/gru4rec.py:GRU4Rec", settings={**_GRU, "num_layers": 2}),
    _of_recbole("narm", code=f"{_SEQUENTIAL}/narm.py:NARM", settings={**_GRU, "n_layers": 1}),
    _of_recbole("caser", code=f"{_SEQUENTIAL}/caser.py:Caser", settings=_CASER),
    # LinRec and EchoMamba4Rec: the copies beside RecGRELA, with which its authors measured them.
    Case(
        "linrec",
        code="TBI805/RecGRELA:model/LinRec.py:LinRec",
        prepare=prepare_linrec,
        settings=_TRANSFORMER,
        stand_ins=(*FOR_RECBOLE, "matplotlib: an import that nothing uses"),
    ),
    Case(
        "lrurec",
        code="yueqirex/LRURec:model/lru.py:LRU",
        prepare=prepare_nothing,
        settings={**_LRUREC, "bert_dropout": 0.2, "bert_attn_dropout": 0.2},
        stand_ins=("args: an object with the settings",),
        libraries=(),
    ),
    Case(
        "eulerformer",
        code="RUCAIBox/EulerFormer:EulerFormer_models/sequential_recommender/sasrec.py:SASRec",
        prepare=prepare_eulerformer,
        settings={**_TRANSFORMER, **_EULERFORMER},
        stand_ins=(*FOR_RECBOLE, "turtle: an import that nothing uses"),
        constants=("euler.alpha",),
    ),
    _recblr("recblr"),
    _recblr("recblr-length-16", lengths=(16, 13, 9, 1)),
    _echomamba4rec("echomamba4rec", settings={**_MAMBA, "num_layers": 1, "MAX_ITEM_LIST_LENGTH": 12}),
    _echomamba4rec("echomamba4rec-2-layers", settings={**_MAMBA, "num_layers": 2, "MAX_ITEM_LIST_LENGTH": 12}),
    Case(
        "recmamba",
        code="nancheng58/RecMamba:model.py:MambaRec",
        prepare=prepare_mamba,
        settings={"hidden_units": 64, "maxlen": 12, "dropout_rate": 0.2, "device": "cpu"},
        stand_ins=("args: an object with the settings", FOR_MAMBA),
        libraries=(MAMBA,),
    ),
    # SIGMA's own repository takes no history but of length `hidden_size`: a convolution whose result nobody uses gets
    # its channels and positions swapped. The copy beside RecGRELA leaves that line out, and nothing else of it.
    _sigma("sigma", settings={**_MAMBA, "num_layers": 1}),
    _sigma("sigma-2-layers", settings={**_MAMBA, "num_layers": 2}),
    _sigma(
        "sigma-length-16",
        code="ziwliu-cityu/SIMGA:model/gated_mamba.py:SIGMA",
        settings={**_MAMBA, "num_layers": 1},
        lengths=(16, 13, 9, 1),
    ),
]
