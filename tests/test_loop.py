"""The training loop without Ray: stopped at any step it goes on as if never stopped, on any number of workers."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from full_disk import fill
from processes import run_together
from safetensors.torch import load_file

from raysrec.checkpoints import Checkpoints, NoneIsWhole
from raysrec.cluster.runtime import ClusterError
from raysrec.config.loading import validate
from raysrec.config.run import RunConfig
from raysrec.config.settings import nest, overlay
from raysrec.data.batching.facts import targets_per_epoch
from raysrec.data.batching.reading import read_directly
from raysrec.engine import StateMismatch
from raysrec.models import build_model
from raysrec.prepare import prepare
from raysrec.ranker import validation_sums
from raysrec.training.loop import Leaving, Training
from raysrec.training.saving import Superseded
from raysrec.training.worker_log import WorkerLog

SETTINGS = {
    "data": {"synthetic": {"num_users": 203, "num_items": 40, "mean_length": 12}, "num_streams": 4},
    "model": {"name": "recgrela", "dim": 16, "num_blocks": 1, "max_length": 20, "dropout": 0.2, "drop_path": 0.2},
    "train": {"epochs": 3, "batch_targets": 512, "learning_rate": 0.01, "warmup_steps": 5, "schedule": "cosine"},
    "engine": {"name": "torch"},
    "scale": {"threads_per_worker": 1},
}


class Killed(BaseException):
    """The process is gone."""


class Log(WorkerLog):
    """Stands in for the driver: keeps what a worker says, and lets it die or stop after a step."""

    def __init__(self, *, dies_after=None, stops_after=None):
        self.losses, self.scores, self.validated, self.saved, self.notes = {}, [], [], [], []
        self.dies_after, self.stops_after = dies_after, stops_after
        self.step = 0

    def after_step(self, result, state, waited_s):
        self.step = state.step
        self.losses[str(state.step)] = result.loss / result.targets
        if self.dies_after == state.step:
            raise Killed

    def wants_stop(self):
        return self.stops_after is not None and self.step >= self.stops_after

    def after_validation(self, state, candidate, scores):
        self.scores.append(scores)
        self.validated.append(candidate.epoch)

    def after_save(self, saved):
        self.saved.append(saved)

    def started(self, state, num_workers, num_targets):
        self.started_after = state.step

    def note(self, text):
        self.notes.append(text)

    def start_epoch(self, state):
        pass

    def end_epoch(self, state, waited_s):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


def configure(folder, **changes):
    settings = overlay(SETTINGS, nest("data.prepared", str(folder / "prepared")))
    if "model" in changes:  # another one, with keys of its own
        del settings["model"]
    for key, value in changes.items():
        settings = overlay(settings, nest(key.replace("__", "."), value))
    return validate(settings)


def start(config, place, log=None, worker=0, num_workers=1, beside=None):
    """Train until the end, or until the log ends it; the log, which has heard everything."""
    log = log or Log()
    data = prepare(config.data)
    training = Training(
        config,
        data,
        Checkpoints(place),
        log,
        read_directly,
        num_targets=targets_per_epoch(data, config),
        device=torch.device("cpu"),
        worker=worker,
        num_workers=num_workers,
        beside=beside,
    )
    try:
        training.run()
    except Killed:
        training._saver.wait()  # what its thread writes must not meet what the next start writes
    return log


def start_together(config, place, num_workers, dies_after=None):
    """The same in several processes; the losses of the steps they made."""
    meeting = Path(f"{place}.meeting")
    meeting.mkdir(exist_ok=True)
    run_together(_member, num_workers, meeting, config.model_dump_json(), place, dies_after)
    return json.loads((meeting / "losses.json").read_text())


def _member(worker, num_workers, config_json, place, dies_after):
    config = RunConfig.model_validate_json(config_json)
    log = start(config, place, Log(dies_after=dies_after), worker, num_workers)
    if worker == 0:
        Path(f"{place}.meeting", "losses.json").write_text(json.dumps(log.losses))


def end_of(place):
    """All that a finished training has left: the state of its end, its best weights, and what its workers saved."""
    with Checkpoints(place).newest() as found:
        assert found.record.state.finished
        return (
            found.record.state,
            load_file(found.kept[found.record.state.best_epoch]),
            [load_file(file) for file in found.states],
        )


UNTIMED = {"elapsed_s": 0.0, "best_elapsed_s": 0.0, "cpu_s": 0.0, "best_cpu_s": 0.0}


def assert_equal(place, other):
    """Two trainings ended alike, to the last bit."""
    (state, best, states), (other_state, other_best, other_states) = end_of(place), end_of(other)
    assert state.model_copy(update=UNTIMED) == other_state.model_copy(update=UNTIMED)
    for own, others in zip([best, *states], [other_best, *other_states], strict=True):
        assert own.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in own.items())


def assert_close(place, other):
    """Two trainings ended alike, but for the order in which sums were taken."""
    (state, best, _), (other_state, other_best, _) = end_of(place), end_of(other)
    untimed = UNTIMED | {"best_score": 0.0}
    assert state.model_copy(update=untimed) == other_state.model_copy(update=untimed)
    assert state.best_score == pytest.approx(other_state.best_score, abs=1e-6)
    for name, value in best.items():
        torch.testing.assert_close(value, other_best[name], rtol=0.0, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def undisturbed(folder):
    config = configure(folder)
    return folder / "undisturbed", start(config, folder / "undisturbed")


def test_the_loss_falls_and_every_epoch_is_saved(undisturbed):
    place, log = undisturbed
    losses = list(log.losses.values())
    assert losses[-1] < losses[0]
    assert len(log.scores) == 3
    assert [saved.state.epoch for saved in log.saved] == [1, 2, 3]
    assert all(saved.problem == "" and saved.bytes > 0 and saved.stalled_s <= saved.seconds for saved in log.saved)
    assert len(Checkpoints(place).names()) == 2  # the newest are kept


def test_killed_after_any_step_it_goes_on_as_if_never_killed(folder, undisturbed):
    whole, log = undisturbed
    steps = len(log.losses)
    assert steps >= 12
    for step in range(1, steps + 1):
        place, seen = folder / f"killed-{step}", {}
        config = configure(folder, checkpoint__every_steps=1 + step % 3)
        seen |= start(config, place, Log(dies_after=step)).losses
        again = start(config, place)
        assert again.started_after <= step
        assert again.started_after >= step - 3
        assert seen | again.losses == log.losses
        assert_equal(place, whole)


def test_killed_again_and_again_it_still_ends_the_same(folder, undisturbed):
    whole, log = undisturbed
    config, place, losses = configure(folder, checkpoint__every_steps=1), folder / "often", {}
    for step in range(2, len(log.losses), 2):
        losses |= start(config, place, Log(dies_after=step)).losses
    losses |= start(config, place).losses
    assert losses == log.losses
    assert_equal(place, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss__name": "bce"},
        {"model": {"name": "bert4rec", "dim": 16}, "train__supervision": "cloze"},
        {"model": {"name": "bprmf", "dim": 16}, "loss": {"name": "bpr", "exclude_history": True}},
        {"model": {"name": "gru4rec", "dim": 16}, "loss": {"name": "sampled_softmax", "sampling": "in_batch"}},
    ],
    ids=["softmax", "bce", "cloze", "bpr", "in_batch"],
)
def test_losses_do_not_depend_on_the_number_of_workers_nor_does_dropout(folder, changes):
    config = configure(folder, train__epochs=1, **changes)
    place = folder / f"alone-{'-'.join(changes)}-{config.model.name}"
    alone = start(config, place)
    together = start_together(config, Path(f"{place}-3"), 3)
    assert together == pytest.approx(alone.losses, rel=1e-5)


def test_early_stopping_keeps_the_best_weights(folder):
    changes = {"train__learning_rate": 0.3, "train__warmup_steps": 0, "train__epochs": 8, "train__patience": 1}
    log = start(configure(folder, **changes), folder / "early")
    scores = [seen["ndcg@10"] for seen in log.scores]
    state, _, _ = end_of(folder / "early")
    assert state.epoch == len(scores) < 8
    assert state.best_epoch == 1 + scores.index(max(scores))
    assert state.best_score == max(scores)


class Beside:
    """Ranks in a thread, and not before the training has gone on."""

    def __init__(self, config, *, fails=False):
        self.config, self.data, self.fails = config, prepare(config.data), fails
        # Made before the training begins: it draws random numbers, as those who rank elsewhere do there.
        self.model = build_model(config.model, self.data.manifest.num_items).eval()
        self.begun = 0
        self._thread = ThreadPoolExecutor(1)

    def __call__(self, weights):
        self.begun += 1
        return self._thread.submit(self._rank, {name: value.clone() for name, value in weights.items()})

    def _rank(self, weights):
        time.sleep(0.2)
        if self.fails:
            raise ClusterError("nobody ranks")
        self.model.load_state_dict(weights)
        return validation_sums(self.model, self.data, self.config, read_directly(self.data.row_groups()))


def assert_chose_alike(place, other):
    """The same weights were chosen, by the same score; how long was trained after that may differ."""
    (state, best, _), (other_state, other_best, _) = end_of(place), end_of(other)
    assert (state.best_epoch, state.best_score) == (other_state.best_epoch, other_state.best_score)
    assert all(torch.equal(value, other_best[name]) for name, value in best.items())
    assert state.candidate is None


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train__learning_rate": 0.3, "train__warmup_steps": 0, "train__epochs": 8, "train__patience": 1},
        {"train__epochs": 7, "train__validate_every": 3},
        {"train__max_steps": 7},
    ],
    ids=["to the last epoch", "until patience runs out", "now and then", "to the last step"],
)
def test_validated_beside_it_a_training_chooses_the_same_weights(folder, changes):
    config = configure(folder, **changes)
    place = folder / f"beside-{'-'.join(changes)}"
    before = start(config, place)
    beside = Beside(config)
    log = start(config, f"{place}-concurrent", beside=beside)
    assert log.validated == before.validated
    assert log.scores == before.scores
    assert beside.begun >= len(log.scores)
    assert_chose_alike(f"{place}-concurrent", place)
    assert log.losses.items() >= before.losses.items()


def test_training_does_not_wait_for_ranks_that_are_made_beside_it(folder):
    """They are made once the next epoch has begun to be learned; who waited for them would wait for ever."""
    config, log = configure(folder), Log()

    class Late(Beside):
        def _rank(self, weights):
            step, deadline = log.step, time.monotonic() + 60
            while log.step == step and self.begun < config.train.epochs:
                assert time.monotonic() < deadline, f"no step after {step} while ranks were awaited"
                time.sleep(0.01)
            return super()._rank(weights)

    start(config, folder / "unawaited", log, beside=Late(config))
    assert log.validated == [1, 2, 3]


def test_what_was_to_be_judged_is_judged_after_a_restart(folder):
    config = configure(folder, checkpoint__every_steps=1)
    whole = start(config, folder / "judged", beside=Beside(config))
    pending = []
    for number, step in enumerate(range(2, len(whole.losses), 3)):
        place = folder / f"judged-{step}"
        seen = start(config, place, Log(dies_after=step), beside=Beside(config))
        with Checkpoints(place).newest() as found:
            pending.append(found is not None and found.record.state.candidate is not None)
        # Who goes on may validate in the other way.
        again = start(config, place, beside=None if number % 2 else Beside(config))
        assert seen.scores + again.scores == whole.scores
        assert_chose_alike(place, folder / "judged")
    assert True in pending[1::2]
    assert True in pending[::2]
    assert False in pending


def test_ranks_that_cannot_be_made_end_the_training(folder):
    config = configure(folder)
    with pytest.raises(ClusterError, match="nobody ranks"):
        start(config, folder / "unranked", beside=Beside(config, fails=True))


def test_training_can_end_in_the_middle_of_an_epoch(folder, undisturbed):
    _, whole = undisturbed
    log = start(configure(folder, train__max_steps=5), folder / "cut")
    assert list(log.losses) == ["1", "2", "3", "4", "5"]
    assert len(log.scores) == 1
    assert end_of(folder / "cut")[0].step == 5
    assert log.losses["1"] == whole.losses["1"]


@pytest.mark.parametrize(
    ("supervision", "model"), [("every_position", "sasrec"), ("last_position", "narm"), ("cloze", "bert4rec")]
)
def test_every_supervision_goes_on_in_the_middle_of_an_epoch(folder, supervision, model):
    changes = {"train__supervision": supervision, "train__epochs": 2, "checkpoint__every_steps": 1}
    if supervision == "last_position":
        changes["train__prefixes_per_user"] = 3
    config = configure(folder, model={"name": model, "dim": 16, "max_length": 20}, **changes)
    whole = start(config, folder / f"{model}-whole").losses
    middle = len(whole) // 2 + 1
    seen = start(config, folder / f"{model}-killed", Log(dies_after=middle)).losses
    again = start(config, folder / f"{model}-killed")
    assert again.started_after in (middle - 1, middle)
    assert seen | again.losses == whole
    assert_equal(folder / f"{model}-killed", folder / f"{model}-whole")


@pytest.mark.parametrize(
    ("engine", "before", "after"),
    [
        ({"name": "torch"}, 2, 2),
        ({"name": "torch"}, 1, 3),
        ({"name": "deepspeed", "zero_stage": 1}, 2, 1),
        ({"name": "deepspeed", "zero_stage": 2}, 2, 4),
        ({"name": "deepspeed", "zero_stage": 3}, 2, 2),
    ],
)
def test_it_goes_on_on_another_number_of_workers(folder, undisturbed, engine, before, after):
    whole, log = undisturbed
    config = configure(folder, engine=engine, checkpoint__every_steps=2)
    place = folder / f"{engine['name']}-{engine.get('zero_stage')}-{before}-{after}"
    seen = start_together(config, place, before, dies_after=6)
    again = start_together(config, place, after)
    assert min(map(int, again)) == 5  # saved after step 4, and step 6 was not saved yet
    losses = seen | again
    assert losses.keys() == log.losses.keys()
    assert losses == pytest.approx(log.losses, rel=1e-5)
    assert_close(place, whole)
    if before == after:
        assert losses == pytest.approx(start_together(config, Path(f"{place}-whole"), before), rel=1e-6)


def test_an_earlier_start_that_still_runs_writes_nothing_any_more(folder):
    place = folder / "taken-over"
    log = Log()
    log.after_validation = lambda state, *_: Checkpoints(place).claim("another") if state.epoch == 2 else None
    with pytest.raises(Superseded, match="another start of this training has taken over"):
        start(configure(folder), place, log)
    assert Checkpoints(place).last_record().state.epoch == 1


def test_asked_to_stop_it_saves_and_the_next_start_goes_on(folder, undisturbed):
    whole, log = undisturbed
    first = start(configure(folder), folder / "stopped", Log(stops_after=4))
    assert max(map(int, first.losses)) in (5, 6)
    assert [saved.state.step for saved in first.saved] == [max(map(int, first.losses))]
    again = start(configure(folder), folder / "stopped")
    assert again.started_after == first.saved[-1].state.step
    assert first.losses | again.losses == log.losses
    assert_equal(folder / "stopped", whole)


@pytest.mark.parametrize(
    ("asked_to", "why"),
    [
        ("leave", "a worker's machine is about to be taken away"),
        ("regroup", "there is room for another number of workers"),
    ],
)
def test_a_worker_that_is_asked_to_go_on_elsewhere_saves_first(folder, undisturbed, monkeypatch, asked_to, why):
    whole, log = undisturbed
    leaving = Log()
    monkeypatch.setattr(f"raysrec.training.loop.asked_to_{asked_to}", lambda: leaving.step >= 3)
    with pytest.raises(Leaving, match=why):
        start(configure(folder), folder / asked_to, leaving)
    monkeypatch.undo()
    assert [saved.state.step for saved in leaving.saved] == [4]
    assert leaving.losses | start(configure(folder), folder / asked_to).losses == log.losses
    assert_equal(folder / asked_to, whole)


def test_time_also_makes_checkpoints(folder):
    log = start(configure(folder, checkpoint__every_s=1e-6), folder / "often-enough")
    assert len(log.saved) > 3


class InTheWay(Log):
    """Puts a file where the checkpoint after the first epoch is to be written, and takes it away after the second."""

    def __init__(self, place, *, forever=False):
        super().__init__()
        self._place, self._forever = place, forever
        self._files = []

    def after_validation(self, state, candidate, scores):
        if state.epoch == 1 or self._forever:
            self._files.append(self._place / state.name)
            self._files[-1].parent.mkdir(exist_ok=True)
            self._files[-1].write_text("in the way")
        elif self._files:
            self._files.pop().unlink()


def test_a_save_that_fails_ends_no_training(folder, undisturbed):
    whole, _ = undisturbed
    place = folder / "blocked"
    log = start(configure(folder), place, InTheWay(place))
    assert [bool(saved.problem) for saved in log.saved] == [True, False, False]
    assert "Not a directory" in log.saved[0].problem or "exists" in log.saved[0].problem
    assert_equal(place, whole)


class FillsTheDisk(Log):
    """Somebody else fills the disk after the first epoch, and makes room again after the second."""

    def __init__(self, disk):
        super().__init__()
        self._file = disk / "somebody-elses"

    def after_validation(self, state, candidate, scores):
        if state.epoch == 1:
            fill(self._file)
        else:
            self._file.unlink(missing_ok=True)


def test_a_full_disk_ends_no_training_and_leaves_nothing_half_written(folder, undisturbed, small_disk):
    whole, _ = undisturbed
    place = small_disk / "checkpoints"
    log = start(configure(folder), place, FillsTheDisk(small_disk))
    assert [bool(saved.problem) for saved in log.saved] == [True, False, False]
    assert "No space left on device" in log.saved[0].problem
    assert_equal(place, whole)
    named = {"owner"}
    for name in Checkpoints(place).names():
        with Checkpoints(place).loaded(name) as found:
            named |= {f"{name}.json", *(file.name for file in [*found.states, *found.kept.values()])}
    assert {file.name for file in place.rglob("*") if file.is_file()} == named


def test_what_was_trained_to_the_end_and_cannot_be_saved_is_an_error(folder):
    place = folder / "never"
    with pytest.raises(RuntimeError, match=r"training is finished but cannot be saved: .*never"):
        start(configure(folder, train__epochs=1), place, InTheWay(place, forever=True))


def test_a_damaged_checkpoint_is_gone_back_from_and_a_line_says_so(folder, undisturbed):
    whole, _ = undisturbed
    config, place = configure(folder, checkpoint__every_steps=2), folder / "damaged"
    start(config, place, Log(dies_after=9))
    newest = Checkpoints(place).names()[0]
    (file,) = (place / newest).iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    again = start(config, place)
    assert again.started_after == int(newest[5:13]) - 2
    assert any("going back to the checkpoint before it" in note for note in again.notes)
    assert_equal(place, whole)


def test_a_run_without_a_whole_checkpoint_does_not_begin_again(folder):
    config, place = configure(folder, checkpoint__every_steps=2), folder / "all-damaged"
    start(config, place, Log(dies_after=9))
    names = Checkpoints(place).names()
    for name in names:
        (file,) = (place / name).iterdir()
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(NoneIsWhole, match=f"none of its {len(names)} checkpoints can be used"):
        start(config, place)
    assert Checkpoints(place).names() == names


def test_the_loss_that_auto_settled_stays_where_another_machine_would_settle_another(folder, undisturbed, monkeypatch):
    whole, _ = undisturbed
    config, place = configure(folder), folder / "settled"
    start(config, place, Log(dies_after=9))
    monkeypatch.setattr("raysrec.objective.EXACT_COSTS_AT_MOST", {"cpu": 0.0, "cuda": 0.0})
    again = start(config, place)
    assert "loss  softmax: as when training began" in again.notes
    assert_equal(place, whole)


def test_data_of_another_fingerprint_are_refused(folder):
    place = folder / "other-data"
    start(configure(folder), place, Log(dies_after=7))
    with pytest.raises(StateMismatch, match=r"was trained on data [0-9a-f]{16}, but the prepared data is [0-9a-f]{16}"):
        start(configure(folder, data__synthetic__num_users=204), place)
