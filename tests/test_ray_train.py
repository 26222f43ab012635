"""What is said of workers that ended together."""

from raysrec.training.ray_train import failures_in_words


def test_what_many_workers_say_is_said_once():
    errors = {2: RuntimeError("a\nno room"), 0: RuntimeError("no room"), 1: OSError("Connection reset by peer")}
    assert failures_in_words(errors, lambda error: None) == "workers 0, 2: no room"
    assert (
        failures_in_words({1: OSError("Connection reset by peer")}, lambda error: None)
        == "worker 1: Connection reset by peer"
    )
    assert (
        failures_in_words({0: ValueError(), 1: RuntimeError("b")}, lambda error: None)
        == "worker 0: ValueError; worker 1: b"
    )
