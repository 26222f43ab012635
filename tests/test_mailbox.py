"""Driver and workers speak through the mailbox, which also knows when there is no use in going on."""

import pytest

from raysrec.mailbox import Mailbox

SAVED = {"kind": "checkpoint", "step": 5}
NOT_SAVED = {"kind": "checkpoint", "step": 5, "text": "no checkpoint at step 5: disk full"}


def test_events_are_taken_once_and_in_order():
    mailbox = Mailbox()
    mailbox.put({"kind": "note", "text": "a"})
    mailbox.put({"kind": "note", "text": "b"})
    assert [event["text"] for event in mailbox.take()] == ["a", "b"]
    assert mailbox.take() == []


def test_workers_learn_with_their_next_event_that_they_are_to_stop():
    mailbox = Mailbox()
    assert not mailbox.put({"kind": "note"})
    mailbox.stop("SIGTERM")
    mailbox.stop("the sweep's scheduler")
    assert mailbox.stop_asked_by() == "SIGTERM"
    assert mailbox.put({"kind": "note"})


def test_failures_with_a_checkpoint_between_them_are_gone_on_from_for_ever():
    mailbox = Mailbox(max_failures=1)
    for _ in range(9):
        mailbox.failed("worker 1: killed")
        mailbox.put(SAVED)
    assert not mailbox.given_up()
    kinds = [event["kind"] for event in mailbox.take()]
    assert kinds == ["failure", "checkpoint"] * 9


@pytest.mark.parametrize("between", [{"kind": "step"}, NOT_SAVED])
def test_failures_without_a_checkpoint_between_them_end_it(between):
    mailbox = Mailbox(max_failures=2)
    for _ in range(2):
        mailbox.failed("worker 1: killed")
        mailbox.put(between)
    assert not mailbox.given_up()
    mailbox.failed("worker 0: division by zero")
    assert mailbox.given_up() == (
        "training failed, 3 times without a checkpoint between them: worker 0: division by zero"
    )


def test_leaving_on_purpose_is_no_failure():
    mailbox = Mailbox(max_failures=0)
    mailbox.failed("worker 1 leaves its machine", expected=True)
    assert not mailbox.given_up()
    (event,) = mailbox.take()
    assert event["text"] == "worker 1 leaves its machine; starting again from the last checkpoint"
    assert event["at"].endswith("+00:00")


def test_what_was_given_up_first_is_what_is_said():
    mailbox = Mailbox(max_failures=9)
    mailbox.give_up("the loss is NaN")
    mailbox.failed("worker 1: connection reset")
    mailbox.give_up("the loss is infinite")
    assert mailbox.given_up() == "the loss is NaN"
    assert mailbox.take() == []
