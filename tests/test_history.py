import torch

from raysrec.history import History


def test_padding_up_to_a_length_adds_zeros_and_nothing_else() -> None:
    history = History(torch.tensor([[3, 1], [5, 0]]), torch.tensor([[7, 8], [9, 0]]), torch.tensor([2, 1]))
    padded = history.padded(4)
    assert padded.items.tolist() == [[3, 1, 0, 0], [5, 0, 0, 0]]
    assert padded.times.tolist() == [[7, 8, 0, 0], [9, 0, 0, 0]]
    assert padded.lengths.tolist() == [2, 1]
    assert padded.mask().sum() == 3


def test_padding_up_to_less_than_there_is_changes_nothing() -> None:
    history = History(torch.tensor([[3, 1]]), torch.tensor([[7, 8]]), torch.tensor([2]))
    assert history.padded(1).items.tolist() == [[3, 1]]
