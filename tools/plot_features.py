#!/usr/bin/env python3
"""How many directions do the features of trained models use? A heat map and a rank for each run, in one picture.

    python tools/plot_features.py runs/ml-1m-linrec runs/no-shortcut runs/ml-1m-recgrela --out features.png

This is the figure of RecGRELA's section on visualization: the states that a model's `encode` gives at the positions
of a user's history, one row per position and one column per channel, and the rank of that matrix. The users are the
same for all runs: those with the longest histories, the test item left out. The heat map is that of the first of
them, and the title gives medians over all.

Nothing in trained features is exactly zero, so two numbers stand in for the rank:

- *rank*: how many singular values are larger than `--tolerance` times the largest (default: 5 %; with 1 % nearly every
  model's rank is full). The paper does not say what it counted as zero, so ranks compare between the panels of one
  picture, not with its 47, 32 and 58.
- *effective rank*: exp(H), H the entropy of the singular values divided by their sum: no threshold, and as many as the
  channels only if all directions are used alike (Roy and Vetterli, "The effective rank", EUSIPCO 2007).

It needs matplotlib: pip install -e '.[plot]'.
"""

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raysrec.data.batching.loader import held_out
from raysrec.data.batching.reading import read_directly
from raysrec.data.prepared import PreparedData
from raysrec.history import History
from raysrec.place import Place
from raysrec.run_directory import RunDirectory, RunError


@dataclass(frozen=True)
class Features:
    """What one panel shows."""

    name: str
    example: Tensor
    """[positions, channels] of the first user."""
    rank: int
    effective_rank: float
    """Both the median over users."""
    num_users: int
    """How many users."""


def main() -> int:
    """Write the picture, print the numbers, and return the exit status."""
    given = _arguments()
    try:
        runs = [RunDirectory.open(path) for path in given.runs]
        data = shared_data(runs)
        panels = [features(run, data, given.users, given.tolerance) for run in runs]
    except RunError as error:
        print(f"plot_features: {error}", file=sys.stderr)
        return 1
    for panel in panels:
        print(f"{panel.name}: rank {panel.rank} of {panel.example.shape[1]}, effective rank {panel.effective_rank:.1f}")
    draw(panels, given.tolerance, given.out)
    return 0


def shared_data(runs: list[RunDirectory]) -> PreparedData:
    """The prepared data that all runs were trained on.

    Raises:
        RunError: They are of several data sets, or one has not finished.
    """
    folders = set()
    for run in runs:
        folders.add(str(Place.of(run.prepared()).absolute()))
    if len(folders) > 1:
        raise RunError(f"the runs were trained on different data, {', '.join(sorted(folders))}; show one at a time")
    return PreparedData.open(folders.pop())


@torch.inference_mode()
def features(run: RunDirectory, data: PreparedData, num_users: int, tolerance: float) -> Features:
    """The states of some users' histories by one run's model, and their ranks.

    Raises:
        SavedModelError: The run has no model yet.
    """
    model = run.load_model()
    matrices = []
    for history in longest_histories(run, data, num_users):
        [states] = model.encode(history)
        matrices.append(states[: int(history.lengths)].float())
    spectra = [torch.linalg.svdvals(matrix) for matrix in matrices]
    typical = statistics.median_high([rank(spectrum, tolerance) for spectrum in spectra])
    effective = statistics.median([effective_rank(spectrum) for spectrum in spectra])
    return Features(run.path.absolute().name, matrices[0], typical, effective, len(matrices))


def longest_histories(run: RunDirectory, data: PreparedData, num_users: int) -> list[History]:
    """Histories of the users with the most interactions, as the run's model sees them before the test item.

    All histories are looked at; of equally long ones the first in the data are taken.
    """
    found: list[tuple[int, int, History]] = []
    for batch in held_out(read_directly(data.row_groups()), data.manifest.split, run.config(), split="test"):
        for row, (user, length) in enumerate(zip(batch.users.tolist(), batch.lengths.tolist(), strict=True)):
            found.append((-length, user, _row(batch.history, row)))
        found = sorted(found, key=lambda one: one[:2])[:num_users]
    return [history for _, _, history in found]


def rank(spectrum: Tensor, tolerance: float) -> int:
    """How many singular values exceed `tolerance` times the largest."""
    return int((spectrum > tolerance * spectrum.max()).sum())


def effective_rank(spectrum: Tensor) -> float:
    """The exponential of the entropy of the singular values' shares."""
    shares = spectrum / spectrum.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


def draw(panels: list[Features], tolerance: float, out: Path) -> None:
    """Write one heat map per panel, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 6.5), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        # A few extreme values would leave all others white.
        limit = float(panel.example.abs().flatten().quantile(0.99))
        image = axis.imshow(
            panel.example.numpy(), aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
        )
        channels = panel.example.shape[1]
        axis.set_title(f"{panel.name}\nrank {panel.rank} of {channels}, effective {panel.effective_rank:.1f}")
        axis.set_xlabel("channel")
        figure.colorbar(image, ax=axis, shrink=0.6)
    axes[0][0].set_ylabel("position in the history")
    figure.suptitle(
        f"States of the same test user by each model\nranks: medians of {panels[0].num_users} users, "
        f"singular values above {tolerance:g} of the largest",
        fontsize="medium",
    )
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def _row(history: History, row: int) -> History:
    users = None if history.users is None else history.users[row : row + 1].clone()
    length = int(history.lengths[row])
    return History(
        history.items[row : row + 1, :length].clone(),
        history.times[row : row + 1, :length].clone(),
        history.lengths[row : row + 1].clone(),
        users,
    )


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="directories of finished runs on the same data, a panel each")
    parser.add_argument("--out", type=Path, default=Path("features.png"), help="the picture (default: features.png)")
    parser.add_argument("--users", type=int, default=32, help="users whose ranks are taken (default: 32)")
    parser.add_argument("--tolerance", type=float, default=0.05, help="what counts as zero (default: 0.05)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
