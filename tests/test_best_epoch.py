from raysrec.checkpoint_record import Candidate, TrainingState
from raysrec.config.run import RunConfig
from raysrec.training.loop import _is_last, _judged


def configure(**train):
    return RunConfig.model_validate({"model": {"name": "recgrela"}, "train": train})


def run_through(config, scores):
    """The states after epochs with these validation scores; None where an epoch is not validated."""
    states = [TrainingState()]
    for epoch, score in enumerate(scores, start=1):
        step = 10 * epoch
        begun = (
            states[-1].after_epoch().model_copy(update={"step": step, "elapsed_s": 1.0 * epoch, "cpu_s": 0.5 * epoch})
        )
        if score is not None:
            candidate = Candidate(epoch=epoch, step=step)
            begun = _judged(begun.model_copy(update={"candidate": candidate}), config, {"ndcg@10": score})
        states.append(begun)
    assert all(state.candidate is None for state in states)
    return states[1:]


def test_the_best_epoch_is_the_first_with_the_highest_score():
    states = run_through(configure(epochs=9, patience=5), [0.1, 0.3, 0.2, 0.3])
    assert [state.best_epoch for state in states] == [1, 2, 2, 2]
    assert states[-1].best_score == 0.3
    assert (states[-1].best_elapsed_s, states[-1].best_cpu_s) == (2.0, 1.0)
    assert states[-1].step == 40


def test_training_stops_when_patience_has_run_out():
    states = run_through(configure(epochs=9, patience=2), [0.3, 0.2, 0.1])
    assert [state.finished for state in states] == [False, False, True]


def test_a_better_score_restores_patience():
    states = run_through(configure(epochs=9, patience=2), [0.3, 0.2, 0.4, 0.1])
    assert [state.worse_in_a_row for state in states] == [0, 1, 0, 1]


def test_epochs_without_validation_cost_no_patience():
    states = run_through(configure(epochs=9, patience=1, validate_every=2), [None, 0.3, None, None])
    assert [state.finished for state in states] == [False] * 4


def test_training_ends_after_the_last_epoch_or_step_asked_for():
    assert [_is_last(configure(epochs=2), epoch, 10 * epoch) for epoch in (1, 2)] == [False, True]
    assert [_is_last(configure(epochs=9, max_steps=20), epoch, 10 * epoch) for epoch in (1, 2)] == [False, True]
