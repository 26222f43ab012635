#!/usr/bin/env python3
"""Run the authors' own code on random weights, and keep what went in and what came out in tests/golden/.

    tools/make_golden.py FOLDER [NAME ...]

FOLDER holds one git checkout per repository, each under the repository's own name and at the commit of `COMMITS`;
the tool checks the commits and reads nothing else. None of that code becomes part of this project, only arrays do:

    weights/<the authors' parameter name>    random, all of them, so that nothing is hidden by an initialisation
    items, lengths                           histories with padding on the right, whatever side the authors pad
    states                                   the last layer's output per position; at padded positions it means nothing,
                                             and Caser has none, but users and the penalty of its loss
    scores                                   of every item after each history's last, [B V]

and tests/golden/provenance.json says of each file which code made it, how, and what stood in for what. Models run in
evaluation mode on a CPU in float32. Kernels that exist for GPUs only are replaced by their definition (`stand_ins`),
and so are parts of the libraries that have nothing to do with the numbers, which is why this needs torch, numpy and
einops only. `tests/test_golden.py` holds our models against these arrays.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from golden_cases import CASES, COMMITS, Case, checkout, load, modules_for_now
from torch import Tensor, nn

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
NUM_ITEMS, NUM_USERS = 30, 6
COLUMNS = {  # RecBole's own names
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "device": "cpu",
}


def main() -> None:
    """Make the files that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds the checkouts")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to make: {' '.join(case.name for case in CASES)}"
    )
    given = parser.parse_args()
    unknown = set(given.names) - {case.name for case in CASES}
    if unknown:
        parser.error(f"there is no case named {' or '.join(sorted(unknown))}")
    provenance_file = GOLDEN / "provenance.json"
    GOLDEN.mkdir(exist_ok=True)
    provenance = json.loads(provenance_file.read_text()) if provenance_file.exists() else {}
    torch.set_num_threads(1)
    for case in CASES:
        if given.names and case.name not in given.names:
            continue
        for repository in (case.where[0], *case.libraries):
            require_commit(given.folder, repository)
        with modules_for_now():
            arrays = run(case, given.folder)
        np.savez(GOLDEN / f"{case.name}.npz", **arrays)
        provenance[case.name] = origin(case)
        print(f"{case.name}: {len(arrays)} arrays, {(GOLDEN / f'{case.name}.npz').stat().st_size / 1e3:.0f} kB")
    provenance_file.write_text(json.dumps(dict(sorted(provenance.items())), indent=2) + "\n")


def run(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """Build the authors' model, give it random weights and histories, and take its states and scores."""
    repository, path, class_name = case.where
    case.prepare(folder)
    authors_class = getattr(load(f"authors_{class_name}", checkout(folder, repository) / path), class_name)
    torch.manual_seed(case.seed)
    items, lengths = histories(case.lengths)
    answer = {"lrurec": answer_of_lrurec, "recmamba": answer_of_recmamba}.get(case.name, answer_of_recbole)
    with torch.no_grad():
        model, arrays = answer(authors_class, case, items, lengths)
    weights = {f"weights/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    return {name: array.numpy() for name, array in {"items": items, "lengths": lengths, **arrays, **weights}.items()}


def answer_of_recbole(
    authors_class: Any, case: Case, items: Tensor, lengths: Tensor
) -> tuple[nn.Module, dict[str, Tensor]]:
    """States and scores of a model for RecBole; its base class picks the read-out state, and is watched doing so."""
    data = types.SimpleNamespace(num=lambda _field: NUM_ITEMS + 1, user_num=NUM_USERS + 1)
    model = authors_class(Settings(case.settings), data)
    randomise(model.eval(), case.constants)
    watched, pick = [], model.gather_indexes
    model.gather_indexes = lambda output, index: (watched.append(output), pick(output, index))[1]
    users = torch.arange(1, len(items) + 1)
    asked = {"item_id_list": items, "item_length": lengths, "user_id": users}
    scores = model.full_sort_predict(asked)
    arrays = {"scores": scores}
    if watched:
        arrays["states"] = watched[-1]
    if case.name == "caser":
        arrays["users"] = users
        arrays["penalty"] = model.calculate_loss({**asked, "item_id": users}) - F.cross_entropy(scores, users)
    if case.name == "eulerformer":
        full = lengths == items.shape[1]
        model(items[full], lengths[full])
        arrays["penalty_of_full_rows"] = model.trm_encoder.loss
    return model, arrays


def answer_of_lrurec(
    authors_class: Any, case: Case, items: Tensor, lengths: Tensor
) -> tuple[nn.Module, dict[str, Tensor]]:
    """States and scores of LRURec, which pads on the left: rows are moved there, and its states back again."""
    model = authors_class(types.SimpleNamespace(**case.settings, num_items=NUM_ITEMS))
    randomise(model.eval(), case.constants)
    watched = []
    model.model.lru_blocks[-1].feed_forward.register_forward_hook(lambda _part, _inputs, output: watched.append(output))
    scores, _ = model(on_the_left(items, lengths))
    states = watched[-1][:, -items.shape[1] :]
    return model, {"states": on_the_right(states, lengths), "scores": scores[:, -1]}


def answer_of_recmamba(
    authors_class: Any, case: Case, items: Tensor, lengths: Tensor
) -> tuple[nn.Module, dict[str, Tensor]]:
    """States and scores of RecMamba, which pads on the left: rows are moved there, and its states back again."""
    model = authors_class(NUM_USERS, NUM_ITEMS, types.SimpleNamespace(**case.settings))
    randomise(model.eval(), case.constants)
    left = on_the_left(items, lengths).numpy()
    scores = model.predict(None, left, list(range(NUM_ITEMS + 1)))
    return model, {"states": on_the_right(model.log2feats(left), lengths), "scores": scores}


def on_the_left(items: Tensor, lengths: Tensor) -> Tensor:
    """Rows with their padding before them."""
    return torch.stack([row.roll(len(row) - int(n)) for row, n in zip(items, lengths, strict=True)])


def on_the_right(rows: Tensor, lengths: Tensor) -> Tensor:
    """Rows with their padding after them."""
    return torch.stack([row.roll(int(n) - len(row), 0) for row, n in zip(rows, lengths, strict=True)])


def histories(lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Random items, padded on the right to the longest history."""
    items = torch.randint(1, NUM_ITEMS + 1, (len(lengths), max(lengths)))
    for row, length in zip(items, lengths, strict=True):
        row[length:] = 0
    return items, torch.tensor(lengths)


def randomise(model: nn.Module, constants: tuple[str, ...]) -> None:
    """Add noise to every parameter, of a size that keeps activations near one; matrices forget what they were."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in constants):
            continue
        if parameter.ndim < 2 or name.endswith(("A_log", "params_log")):
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
        else:
            parameter.copy_(torch.randn_like(parameter) / math.sqrt(parameter[0].numel()))


def origin(case: Case) -> dict[str, Any]:
    """What there is to say about how a file was made."""
    repository, path, class_name = case.where
    return {
        "repository": f"https://github.com/{repository}",
        "commit": COMMITS[repository],
        "file": path,
        "class": class_name,
        "libraries": {f"https://github.com/{name}": COMMITS[name] for name in case.libraries},
        "stand_ins": list(case.stand_ins),
        "settings": case.settings,
        "seed": case.seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


class Settings(dict[str, Any]):
    """RecBole's config, as far as models ask it: by key (None if absent) and by attribute."""

    def __missing__(self, key: str) -> Any:
        return COLUMNS.get(key)

    def __getattr__(self, name: str) -> Any:
        return self[name]


def require_commit(folder: Path, repository: str) -> None:
    """Exit unless the checkout is at the commit that the arrays are said to come from."""
    command = ["git", "-C", str(checkout(folder, repository)), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if commit != COMMITS[repository]:
        sys.exit(f"{checkout(folder, repository)} is at {commit or 'no commit'}, not at {COMMITS[repository]}")


if __name__ == "__main__":
    main()
