"""What is recommended is what the evaluator ranks, to users of the data and of files; all but Ray is real."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch
from run_folders import record_of

from raysrec import recommend as verb
from raysrec.config.loading import validate
from raysrec.config.settings import overlay
from raysrec.data.batching.reading import COLUMNS, read_directly
from raysrec.data.sources.files import SourceError
from raysrec.history import History
from raysrec.models import build_model
from raysrec.place import Place
from raysrec.prepare import prepare
from raysrec.ranker import rank_tables
from raysrec.recommend import recommend, summary
from raysrec.recommending.recommendations import FolderError
from raysrec.recommending.recommender import Recommender
from raysrec.recommending.request import Request, users_file
from raysrec.run_directory import RunDirectory, RunError

DATA = {"synthetic": {"num_users": 90, "num_items": 40, "mean_length": 14}, "num_streams": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recommend")


def run_of(folder, name, called="", **data):
    """A finished run of a model with random weights."""
    settings = {
        "data": {**DATA, "prepared": str(folder / "prepared"), **data},
        "model": {"name": name, "dim": 16, "max_length": 8},
        "train": {"supervision": "last_position"} if name == "caser" else {},
        "evaluate": {"batch_tokens": 64, "items_per_chunk": 7},
        "storage": {"root": str(folder / "runs"), "name": called or name},
    }
    config = validate(settings)
    data = prepare(config.data)
    run = RunDirectory(config.run_directory)
    if not run.metrics_file.is_file():
        torch.manual_seed(1)
        model = build_model(config.model, data.manifest.num_items, data.manifest.num_users)
        model.set_item_counts(torch.from_numpy(data.train_counts()))
        run.start(config, data.manifest.fingerprint)
        run.save_model(config, data.manifest.num_items, model.state_dict(), num_users=data.manifest.num_users)
        run.save_record(record_of(prepared=str(data.directory)))
    return run, config, data


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Work is done in this process, as an actor of Ray would do it; the list says what was done."""
    done = []

    def do_here(make, work, scale):
        do = make(torch.device("cpu"))
        for piece in work:
            done.append(piece)
            yield do(piece)

    monkeypatch.setattr(verb, "done_by_actors", do_here)
    monkeypatch.setattr(verb, "wait_for_nodes", lambda *args, **kwargs: None)
    monkeypatch.setattr(verb, "ray_session", lambda scale: torch.no_grad())
    return done


def read(output):
    """For each user the items and scores that were written."""
    rows = pq.read_table(str(output)).to_pylist()
    found = {row["user"]: (row["items"], row["scores"]) for row in rows}
    assert len(found) == len(rows)
    return found


def histories(data):
    """Each user's items, by external ids."""
    item_ids = data.item_ids().to_pylist()
    tables = read_directly(data.row_groups(), [COLUMNS[0], "user_id", *COLUMNS[1:]])
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["user_id"]: ([item_ids[item] for item in row["items"]], row["times"]) for row in rows}


@pytest.mark.parametrize("until", ["validation", "test"])
@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "caser", "bprmf", "popularity"])
def test_a_target_stands_where_the_evaluator_ranks_it(folder, tmp_path, name, exclude_seen, until):
    run, config, data = run_of(folder, name)
    config = validate(overlay(config.model_dump(mode="json"), {"evaluate": {"exclude_seen": exclude_seen}}))
    recommend(run, config, Request(k=data.manifest.num_items, until=until), str(tmp_path / "all"))
    found = read(tmp_path / "all")
    ranks = {}
    for part in rank_tables(run.load_model(), data, config, read_directly(data.row_groups()), until):
        ranks |= dict(zip(part.users.tolist(), part.ranks.tolist(), strict=True))
    assert len(found) == len(ranks) == data.manifest.num_ranked(until)
    compared = 0
    for number, (user, (items, _)) in enumerate(histories(data).items(), start=1):
        place = len(items) - (1 if until == "test" else 2)
        listed, scores = found[user]
        target, past = items[place], set(items[:place])
        assert len(listed) == len(set(listed)) == data.manifest.num_items - (len(past) if exclude_seen else 0)
        assert not (exclude_seen and past & set(listed))
        if exclude_seen and target in past:
            continue  # consumed again: it is ranked among the others, but never recommended
        # Ties count against the target: all that score as high come before it, wherever they stand in the list.
        own = scores[listed.index(target)]
        ties = sum(score == own for score in scores) - 1
        assert ties == 0 or name == "popularity"
        assert ranks[number] == 1 + sum(score >= own for score in scores) - 1
        if not ties:
            assert ranks[number] == 1 + listed.index(target)
        compared += 1
    assert compared > 50
    assert all(scores == sorted(scores, reverse=True) for _, scores in found.values())


def test_all_of_a_history_is_read_unless_it_is_cut(folder, tmp_path):
    run, config, data = run_of(folder, "gru4rec")
    recommend(run, config, Request(k=3), str(tmp_path / "all"))
    model, item_ids = run.load_model(), data.item_ids().to_pylist()
    numbers = {item: number for number, item in enumerate(item_ids)}
    found = read(tmp_path / "all")
    assert list(found) == list(histories(data))
    with torch.inference_mode():
        for user, (items, times) in histories(data).items():
            past = torch.tensor([[numbers[item] for item in items[-8:]]])
            lengths = torch.tensor([past.shape[1]])
            state = model.read(History(past, torch.tensor([times[-8:]]), lengths))[0]
            scores = (model.item_vectors() @ state)[1:]
            best = scores.argsort(descending=True)[:3] + 1
            assert found[user][0] == [item_ids[item] for item in best.tolist()]
            np.testing.assert_allclose(found[user][1], scores[best - 1].numpy(), rtol=1e-5)


def table_of(histories):
    """Interactions in the order of time, of all users among each other."""
    rows = [
        (user, item, time)
        for user, (items, times) in histories.items()
        for item, time in zip(items, times, strict=True)
    ]
    rows.sort(key=lambda row: row[2])
    users, items, times = zip(*rows, strict=True)
    return pa.table({"user": users, "item": items, "time": pa.array(times, pa.int64())})


def written(table, file):
    """The table as a file of the format that its name tells."""
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.suffix == ".csv":
        pacsv.write_csv(table, file)
    elif file.suffix == ".inter":
        lines = ["\t".join(map(str, row.values())) for row in table.to_pylist()]
        file.write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]) + "\n")
    else:
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()))
    return str(file)


@pytest.mark.parametrize("file", ["new.csv", "new.inter", "new.parquet", "new.jsonl.gz"])
def test_users_of_a_file_get_what_the_same_users_of_the_data_get(folder, tmp_path, monkeypatch, file):
    monkeypatch.setattr("raysrec.recommending.asked.AT_ONCE", 100)
    monkeypatch.setattr("raysrec.data.sources.blocks.PIECE_INTERACTIONS", 300)
    run, config, data = run_of(folder, "sasrec")
    recommend(run, config, Request(), str(tmp_path / "data"))
    users = users_file(written(table_of(histories(data)), tmp_path / file), config, [])
    manifest = recommend(run, config, Request(users=users), str(tmp_path / "file"))
    assert len(manifest["files"]) > 3
    assert manifest["counts"]["left_out"]["count"] == manifest["unknown_items"]["count"] == 0
    expected, found = read(tmp_path / "data"), read(tmp_path / "file")
    assert found.keys() == expected.keys()
    for user, (items, scores) in expected.items():
        assert found[user][0] == items
        np.testing.assert_allclose(found[user][1], scores, rtol=1e-5)  # batches differ, and so do the last digits


def test_unknown_items_and_users_who_have_no_others_are_left_out_and_named(folder, tmp_path):
    run, config, data = run_of(folder, "sasrec")
    items = next(iter(histories(data).values()))[0]
    mixed = {
        "mixed": (["?1", items[0], "?2", *items[1:3], "?1"], [1, 2, 3, 4, 5, 6]),
        "same": (items[:3], [2, 4, 5]),
        "nobody": (["?1", "?3"], [1, 2]),
    }
    users = users_file(written(table_of(mixed), tmp_path / "new.csv"), config, [])
    manifest = recommend(run, config, Request(users=users), str(tmp_path / "out"))
    found = read(tmp_path / "out")
    assert found.keys() == {"mixed", "same"}
    assert found["mixed"] == found["same"]
    assert manifest["counts"] == {
        "users": 2,
        "shorter": 0,
        "left_out": {"count": 1, "examples": ["nobody"]},
        "unknown": 5,
    }
    assert manifest["unknown_items"] == {"count": 3, "examples": ["?1", "?3", "?2"]}
    said = summary(manifest)
    assert "1 users who are unknown or have nothing to go by (nobody)" in said
    assert "5 interactions with 3 items that are not in the catalogue (?1, ?3, ?2)" in said
    strangers = users_file(written(table_of({"a": (["x", "y"], [1, 2])}), tmp_path / "strange.csv"), config, [])
    with pytest.raises(SourceError, match=r"--users .*strange\.csv: none of its 2 items is in the run's catalogue"):
        recommend(run, config, Request(users=strangers), str(tmp_path / "none"))
    assert not list(tmp_path.glob("none*"))


def test_who_was_not_learned_from_gets_nothing_where_a_model_knows_users_only(folder, tmp_path):
    run, config, data = run_of(folder, "bprmf", "cold")
    model = run.load_model()
    model.set_learned_users(torch.arange(data.manifest.num_users + 1) != 3)
    run.save_model(config, data.manifest.num_items, model.state_dict(), num_users=data.manifest.num_users)
    manifest = recommend(run, config, Request(k=3), str(tmp_path / "out"))
    users = list(histories(data))
    assert read(tmp_path / "out").keys() == set(users) - {users[2]}
    assert manifest["counts"]["left_out"] == {"count": 1, "examples": [users[2]]}


def test_users_can_be_named(folder, tmp_path, monkeypatch, here):
    monkeypatch.setattr("raysrec.data.preparing.writing.SMALLEST_ROW_GROUP", 100)
    monkeypatch.setattr("raysrec.recommending.asked.AT_ONCE", 100)
    run, config, _ = run_of(folder, "gru4rec", "many-groups", user_interactions="[6,inf)")
    recommend(run, config, Request(), str(tmp_path / "all"))
    parts, expected = len(here), read(tmp_path / "all")
    some = [*list(expected)[3:5], list(expected)[-1]]
    (tmp_path / "ids.txt").write_text("\n".join([some[0], "", f" {some[1]} ", some[0], "stranger", some[2]]) + "\n")
    here.clear()
    manifest = recommend(run, config, Request(user_ids=str(tmp_path / "ids.txt")), str(tmp_path / "some"))
    assert read(tmp_path / "some").keys() == set(some)
    assert len(here) == 2 < parts  # row groups in which nobody was asked for are not read again
    assert manifest["counts"]["left_out"] == {"count": 1, "examples": ["stranger"]}
    (tmp_path / "ids.txt").write_text("stranger\n")
    with pytest.raises(RunError, match="none of the 1 ids, such as stranger, is of a user of the run's data"):
        recommend(run, config, Request(user_ids=str(tmp_path / "ids.txt")), str(tmp_path / "none"))
    (tmp_path / "ids.txt").write_text("\n\n")
    with pytest.raises(SourceError, match="holds no id; expected one a line"):
        recommend(run, config, Request(user_ids=str(tmp_path / "ids.txt")), str(tmp_path / "none"))


def test_many_users_of_few_items_are_written_in_several_row_groups(folder, tmp_path, monkeypatch):
    run, config, _ = run_of(folder, "popularity")
    recommend(run, config, Request(k=4), str(tmp_path / "once"))
    monkeypatch.setattr("raysrec.recommending.recommender.ITEMS_AT_ONCE", 100)
    (file,) = recommend(run, config, Request(k=4), str(tmp_path / "parts"))["files"]
    assert pq.ParquetFile(tmp_path / "parts" / file["file"]).num_row_groups == 4
    assert read(tmp_path / "parts") == read(tmp_path / "once")


class Killed(BaseException):
    """Ends a process without a word."""


def test_killed_and_typed_again_it_goes_on(folder, tmp_path, monkeypatch, here):
    monkeypatch.setattr("raysrec.recommending.asked.AT_ONCE", 100)
    run, config, data = run_of(folder, "sasrec")
    users = users_file(written(table_of(histories(data)), tmp_path / "new.csv"), config, [])
    request, output = Request(users=users), tmp_path / "out"
    recommend(run, config, request, str(tmp_path / "whole"))
    parts, expected = len(here), read(tmp_path / "whole")
    here.clear()
    work = Recommender.__call__

    def killed_at_the_third(self, unit):
        if len(here) == 3:
            raise Killed
        return work(self, unit)

    monkeypatch.setattr(Recommender, "__call__", killed_at_the_third)
    with pytest.raises(Killed):
        recommend(run, config, request, str(output))
    assert not output.exists()  # nothing half-written has the name of what is whole
    monkeypatch.setattr(Recommender, "__call__", work)
    here.clear()
    with pytest.raises(FolderError, match=r"was begun with other settings: k was 10 and is now 3; name another folder"):
        recommend(run, config, Request(k=3, users=users), str(output))
    settings = Path(f"{output}.unfinished", "settings.json")
    begun = settings.read_text()
    settings.write_text(begun[:-3])
    with pytest.raises(FolderError, match=r"settings\.json: is damaged \(.*; delete .*unfinished"):
        recommend(run, config, request, str(output))
    settings.write_text(begun)
    recommend(run, config, request, str(output))
    assert len(here) == parts - 2  # those that were done are not done again, and the file is not read again
    assert read(output) == expected
    assert {path.name for path in output.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    assert not list(tmp_path.glob("out.*"))


def test_what_is_there_is_not_written_over(folder, tmp_path, here):
    run, config, _ = run_of(folder, "popularity")
    output = tmp_path / "out"
    output.mkdir()  # an empty folder is in nobody's way
    recommend(run, config, Request(), str(output))
    with pytest.raises(FolderError, match="is finished; name another folder, or --fresh"):
        recommend(run, config, Request(), str(output))
    recommend(run, config, Request(k=2), str(output), fresh=True)
    assert {len(items) for items, _ in read(output).values()} == {2}
    here.clear()
    for place, name in ((tmp_path / "mine", "thesis.txt"), (tmp_path / "new.unfinished", "thesis.txt")):
        place.mkdir()
        (place / name).write_text("years of work")
        for fresh in (False, True):
            with pytest.raises(FolderError, match=r"is thesis\.txt, which is no part of recommendations"):
                recommend(run, config, Request(), str(place).removesuffix(".unfinished"), fresh=fresh)
        assert (place / name).is_file()
    (tmp_path / "parts").mkdir()
    written(pa.table({"a": [1]}), tmp_path / "parts/part-00000.parquet")
    (tmp_path / "parts/part-00001.parquet").write_text("years of work")
    with pytest.raises(FolderError, match=r"is part-0000\d\.parquet, which is no part of recommendations"):
        recommend(run, config, Request(), str(tmp_path / "parts"), fresh=True)
    with pytest.raises(FolderError, match="is a file; name a folder"):
        recommend(run, config, Request(), str(tmp_path / "mine" / "thesis.txt"))
    assert not here


@pytest.mark.s3
def test_in_a_store_it_is_whole_or_not_there_too(folder, tmp_path, s3, monkeypatch):
    run, config, data = run_of(folder, "sasrec")
    recommend(run, config, Request(), str(tmp_path / "here"))
    monkeypatch.setattr("raysrec.recommending.asked.AT_ONCE", 300)
    table = table_of(histories(data))
    users = users_file(written(table, tmp_path / "new.csv"), config, [])
    copy = verb.RecommendationFolder._copy

    def killed_at_the_second(self, name):
        if name == "part-00001.parquet":
            raise Killed
        copy(self, name)

    monkeypatch.setattr(verb.RecommendationFolder, "_copy", killed_at_the_second)
    for output in ("out", "other"):
        with pytest.raises(Killed):
            recommend(run, config, Request(users=users), f"{s3}/{output}")
    monkeypatch.setattr(verb.RecommendationFolder, "_copy", copy)
    manifest = recommend(run, config, Request(k=2), f"{s3}/other", fresh=True)
    other = Place.of(f"{s3}/other")
    assert Place.of(f"{s3}/other.unfinished").below() == []
    assert {info.base_name for info in other.below()} == {
        "_manifest.json",
        *(file["file"] for file in manifest["files"]),
    }
    assert {len(items) for items in pq.read_table(other.path, filesystem=other.filesystem)["items"].to_pylist()} == {2}
    # Killed again, while it deletes these.
    (other / "_manifest.json").delete()
    with pytest.raises(FolderError, match="holds some parts of recommendations that cannot be resumed; name anoth"):
        recommend(run, config, Request(k=2), f"{s3}/other")
    assert recommend(run, config, Request(k=2), f"{s3}/other", fresh=True)["files"] == manifest["files"]
    manifest = recommend(run, config, Request(users=users), f"{s3}/out")
    place = Place.of(f"{s3}/out")
    names = {info.base_name for info in place.below()}
    assert names == {"_manifest.json", *(file["file"] for file in manifest["files"])}
    assert not Place.of(f"{s3}/out.unfinished").below()
    found = pq.read_table(place.path, filesystem=place.filesystem)
    assert set(found["user"].to_pylist()) == set(read(tmp_path / "here"))
    with pytest.raises(FolderError, match="name a folder in it"):
        recommend(run, config, Request(), s3[: s3.rindex("/")])


def say(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["recommend", *map(str, arguments)])
    verb.main(verb.parser().parse_intermixed_args())


def test_what_cannot_be_is_said_before_anything_starts(folder, tmp_path, monkeypatch, here, capsys):
    run, config, data = run_of(folder, "sasrec")
    caser, _, _ = run_of(folder, "caser")
    new = written(table_of(histories(data)), tmp_path / "new.csv")
    (tmp_path / "bad.csv").write_text(f"customer,sku,when\na,{data.item_ids()[1]},1\n")
    (tmp_path / "new.dat").write_text("a b 1\n")
    output = ("--output", tmp_path / "out")
    unfinished = RunDirectory(folder / "runs" / "unfinished")
    unfinished.start(config, data.manifest.fingerprint)
    for arguments, words in (
        ((tmp_path / "nowhere", *output), r"nowhere: is no run, it has no config\.yaml"),
        ((unfinished.path, *output), "unfinished: has not finished training; run raysrec.train again"),
        ((run.path, *output, "--k", 41), r"--k 41: expected 1 to 40, so many items are in the catalogue"),
        ((run.path, *output, "--k", 0), r"--k 0: expected 1 to 40"),
        ((run.path, *output, "--users", tmp_path / "no.csv"), r"--users .*no\.csv: there is no such file"),
        (
            (run.path, *output, "--users", tmp_path / "bad.csv"),
            r"bad\.csv: line 1: there is no column user, only customer",
        ),
        (
            (run.path, *output, "--users", tmp_path / "new.dat"),
            r"--users .*new\.dat: the name does not tell the format",
        ),
        (
            (run.path, *output, "--users", new, "--until", "test"),
            "--until and --user-ids are for users of the run's data",
        ),
        ((run.path, *output, "--user-ids", tmp_path / "ids"), r"ids: there is no such file"),
        ((caser.path, *output, "--users", new), "model.name=caser has learned a vector for each user of its data"),
        ((run.path, *output, "train.epochs=3"), r"train\.epochs=3: the run is trained; .* evaluate\.\*, scale\.\*"),
        ((run.path, *output, "evaluate.ks=0"), r"evaluate\.ks"),
        ((run.path, *output, "--users", new, "data.name=a"), r"data\.name=a: .*scale\.\*, data\.format, data\.columns"),
        ((run.path, *output, "data.columns.user=a"), r"data\.columns\.user=a: the run is trained"),
    ):
        with pytest.raises(ValueError, match=words):
            say(monkeypatch, *arguments)
        assert not list(tmp_path.glob("out*")), words
    assert not here
    say(
        monkeypatch,
        run.path,
        *output,
        "--users",
        tmp_path / "bad.csv",
        "data.columns={user: customer, item: sku, time: when}",
    )


def test_a_file_is_read_as_the_run_s_own_source_if_it_is_in_the_same_format(tmp_path):
    for name in ("own.csv", "new.csv", "new.jsonl"):
        (tmp_path / name).write_text("")
    columns = {"user": "customer", "item": "sku", "time": "at"}
    source = {"source": str(tmp_path / "own.csv"), "columns": columns, "time_unit": "ms"}
    config = validate({"data": source, "model": {"name": "sasrec"}})
    like = users_file(str(tmp_path / "new.csv"), config, ["data.columns.item=product"])
    assert like.columns.model_dump() == {**columns, "item": "product"}
    assert (like.time_unit, like.source) == ("ms", str(tmp_path / "new.csv"))
    other = users_file(str(tmp_path / "new.jsonl"), config, [])
    assert (other.columns.user, other.time_unit, other.source) == ("user", "auto", str(tmp_path / "new.jsonl"))
    (tmp_path / "own.csv").unlink()
    assert users_file(str(tmp_path / "new.csv"), config, []).columns.user == "customer"
