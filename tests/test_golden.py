"""Our models against published code: the same random weights and histories give the same numbers.

It is their authors' own, RecBole's for the models that RecBole has, and for LinRec and EchoMamba4Rec the copy with
which RecGRELA's authors measured them.

tests/golden/ holds the arrays and says in provenance.json where they come from; `tools/make_golden.py` makes them.
Here stands in which of a model's forms the two must agree.
"""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_weights import GOLDEN, model_of
from torch import Tensor

from raysrec.history import History
from raysrec.models import SequenceModel
from raysrec.models.bert4rec import BERT4Rec


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


def test_recmamba_padded_on_the_left_is_the_authors_model() -> None:
    assert_agrees(model_of("recmamba", padding="left"), "recmamba")


def test_recmamba_padded_on_the_right_is_the_authors_model_where_there_is_no_padding() -> None:
    model, history = model_of("recmamba"), history_of("recmamba", full=True)
    assert_close(scores_of(model, history), answer_of("recmamba", "scores")[:1])


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


def test_bert4rec_that_always_drops_the_oldest_item_is_recboles() -> None:
    model, history = model_of("bert4rec", oldest_makes_room="always"), history_of("bert4rec")
    assert isinstance(model, BERT4Rec)
    hidden = model.with_next_hidden(history)
    with torch.no_grad():
        assert_close(model.encode(hidden)[hidden.mask()], answer_of("bert4rec", "states")[hidden.mask()])
    assert_close(scores_of(model, history), answer_of("bert4rec", "scores"))


def test_bert4rec_that_keeps_what_has_room_is_recboles_for_a_full_history_only() -> None:
    ours, theirs = scores_of(model_of("bert4rec"), history_of("bert4rec")), answer_of("bert4rec", "scores")
    assert_close(ours[0], theirs[0])
    assert ((ours - theirs).abs().amax(dim=1)[1:] > 1e-2).all()


def test_gru4rec_is_recboles() -> None:
    assert_agrees(model_of("gru4rec"), "gru4rec")


def test_narm_is_recboles() -> None:
    model, history = model_of("narm"), history_of("narm")
    theirs = answer_of("narm", "scores")
    assert_close(scores_of(model, history), theirs)
    with torch.no_grad():  # asked at every position
        states = model.encode(history)[torch.arange(len(history.lengths)), history.lengths - 1]
        assert_close(states @ model.item_vectors().T, theirs)


def test_caser_padded_on_the_right_is_recboles_with_its_penalty() -> None:
    users = answer_of("caser", "users")
    model, history = model_of("caser", padding="right"), replace(history_of("caser"), users=users)
    assert_close(scores_of(model, history), answer_of("caser", "scores"))
    penalty = model.penalty()
    assert penalty is not None
    assert_close(penalty, answer_of("caser", "penalty"))


def test_caser_padded_on_the_left_is_recboles_where_there_is_no_padding() -> None:
    users = answer_of("caser", "users")[:1]
    history = replace(history_of("caser", full=True), users=users)
    assert_close(scores_of(model_of("caser"), history), answer_of("caser", "scores")[:1])


def test_linrec_unmasked_is_the_copy_beside_recgrela() -> None:
    assert_agrees(model_of("linrec", form="unmasked"), "linrec")


def test_linrec_unmasked_is_the_copy_beside_recgrela_in_a_batch_of_shorter_histories() -> None:
    assert_agrees_in_a_shorter_batch(model_of("linrec", form="unmasked"), "linrec")


def test_linrec_with_masked_padding_is_that_copy_where_there_is_none() -> None:
    assert_agrees_where_read(model_of("linrec"), "linrec")


@pytest.mark.parametrize(("case", "num_layers"), [("echomamba4rec", 1), ("echomamba4rec-2-layers", 2)])
def test_echomamba4rec_unmasked_is_the_copy_beside_recgrela(case: str, num_layers: int) -> None:
    assert_agrees(model_of(case, num_layers=num_layers, form="unmasked"), case)


def test_echomamba4rec_unmasked_is_the_copy_beside_recgrela_in_a_batch_of_shorter_histories() -> None:
    assert_agrees_in_a_shorter_batch(model_of("echomamba4rec", form="unmasked"), "echomamba4rec")


def test_echomamba4rec_with_masked_padding_is_that_copy_where_there_is_none() -> None:
    assert_agrees_where_read(model_of("echomamba4rec"), "echomamba4rec")


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
