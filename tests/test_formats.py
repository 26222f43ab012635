"""Every published format, in the layout in which it was published."""

import gzip
import typing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysrec.config import DataConfig
from raysrec.data.sources.files import SourceError
from raysrec.data.sources.formats import LAYOUTS, format_of
from raysrec.data.sources.read import read

COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": lambda content: bytes(pa.compress(content, "zstd", asbytes=True))}

NETFLIX = b"1:\n1488844,3,2005-09-06\n822109,5,2005-05-13\n2:\n2059652,4,2005-09-05\n"
LFM = b"31435741\t2\t4\t4\t1385212958\n31435741\t2\t4\t4\t1385212642\n31435741\t9\t11\t13\t1385212341\n"
RECBOLE_LFM = (
    b"user_id:token\tartists_id:token\ttimestamp:float\tnum_repeat:float\n"
    b"31435741\t2\t1385212958\t3\n31435741\t9\t1385212341\t1\n"
)
AMAZON_2014 = b"A39HTATAQ9V7YF,0205616461,5.0,1369699200\nA3JM6GV9MNOF9X,0558925278,3.0,1355443200\n"
AMAZON_2018 = b"0205616461,A39HTATAQ9V7YF,5.0,1369699200\n0558925278,A3JM6GV9MNOF9X,3.0,1355443200\n"
REVIEWS = (
    b'{"reviewerID": "A39HTATAQ9V7YF", "asin": "0205616461", "reviewerName": "B. \\"x\\"", "helpful": [0, 0], '
    b'"reviewText": "long, {or} short", "overall": 5.0, "summary": "s", "unixReviewTime": 1369699200, '
    b'"reviewTime": "05 28, 2013"}\n'
    b'{"overall": 3.0, "verified": true, "reviewTime": "12 14, 2012", "reviewerID": "A3JM6GV9MNOF9X", '
    b'"asin": "0558925278", "style": {"Format:": " Kindle"}, "unixReviewTime": 1355443200}\n'
)
AMAZON = [("A39HTATAQ9V7YF", "0205616461", 1369699200), ("A3JM6GV9MNOF9X", "0558925278", 1355443200)]
AMAZON_2023 = (
    b"user_id,parent_asin,rating,timestamp\nAGKASBHYZPGTEPO6LWZPVJWB2BVA,B006GBITXC,3.0,1452647382000\n"
    b"AGKASBHYZPGTEPO6LWZPVJWB2BVA,B00TLEMSVK,4.0,1454675785123\n"
)
REVIEWS_2023 = (
    b'{"rating": 3.0, "title": "t", "text": "x", "images": [], "asin": "B1", "parent_asin": "B006GBITXC", '
    b'"user_id": "AGKASBHYZPGTEPO6LWZPVJWB2BVA", "timestamp": 1452647382000, "verified_purchase": true}\n'
    b'{"rating": 4.0, "images": [{"small_image_url": "u"}], "asin": "B2", "parent_asin": "B00TLEMSVK", '
    b'"user_id": "AGKASBHYZPGTEPO6LWZPVJWB2BVA", "timestamp": 1454675785123, "verified_purchase": false}\n'
)
IN_2023 = [
    ("AGKASBHYZPGTEPO6LWZPVJWB2BVA", "B006GBITXC", 1452647382000),
    ("AGKASBHYZPGTEPO6LWZPVJWB2BVA", "B00TLEMSVK", 1454675785123),
]
KUAIRAND = (
    b"user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    b"play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
    b"0,4354972,20220409,900,1649467982289,0,0,0,0,0,0,0,0,70100,0,0,0,0,0\n"
    b"0,2528540,20220409,900,1649467982290,1,0,0,0,0,0,0,5332,11450,0,0,0,0,0\n"
)

SAMPLES = [
    ("combined_data_1.txt", NETFLIX, {}, [("1488844", "1", 1125964800), ("822109", "1", 1115942400),
                                          ("2059652", "2", 1125878400)]),
    ("LFM-1b_LEs.txt", LFM, {}, [("31435741", "2", 1385212958), ("31435741", "2", 1385212642),
                                 ("31435741", "9", 1385212341)]),
    ("LFM-1b_LEs.txt", LFM, {"columns": {"item": "track"}}, [("31435741", "4", 1385212958),
     ("31435741", "4", 1385212642), ("31435741", "13", 1385212341)]),
    ("lfm1b-artists.inter", RECBOLE_LFM, {"columns": {"item": "artists_id"}},
     [("31435741", "2", 1385212958), ("31435741", "9", 1385212341)]),
    ("lfm1b-artists.inter", RECBOLE_LFM, {"columns": {"item": "artists_id"}, "where": {"num_repeat": 3}},
     [("31435741", "2", 1385212958)]),
    ("ratings_Beauty.csv", AMAZON_2014, {"format": "amazon-2014"}, AMAZON),
    ("Luxury_Beauty.csv", AMAZON_2018, {"format": "amazon-2018"}, AMAZON),
    ("reviews_Beauty.json", REVIEWS, {}, AMAZON),
    ("Beauty_5.json", REVIEWS, {"format": "amazon-2018"}, AMAZON),
    ("Beauty_5.json", REVIEWS, {"format": "amazon-2018", "where": {"overall": 3.0}}, AMAZON[1:]),
    ("All_Beauty.csv", AMAZON_2023, {"format": "amazon-2023"}, IN_2023),
    ("All_Beauty.jsonl", REVIEWS_2023, {"format": "amazon-2023"}, IN_2023),
    ("All_Beauty.jsonl", REVIEWS_2023, {"format": "amazon-2023", "where": {"verified_purchase": True},
     "columns": {"item": "asin"}}, [("AGKASBHYZPGTEPO6LWZPVJWB2BVA", "B1", 1452647382000)]),
    ("log_standard_4_08_to_4_21_1k.csv", KUAIRAND, {}, [("0", "4354972", 1649467982289),
                                                        ("0", "2528540", 1649467982290)]),
    ("log_random_4_22_to_5_08_1k.csv", KUAIRAND, {"where": {"is_click": 1}}, [("0", "2528540", 1649467982290)]),
    ("events.jsonl", b'{"user": 7, "item": "x", "time": "12"}\n\n{"item": "y", "user": 8, "time": "-3.0"}', {},
     [("7", "x", 12), ("8", "y", -3)]),
    ("events.json", b'{"user": "a", "item": 1, "time": 2}\n{"user": "b", "item": 2, "time": 3.0}\n', {},
     [("a", "1", 2), ("b", "2", 3)]),
    ("events.csv", b"user,item,time\na,x,2005-09-06 00:00:01\nb,y,2005-09-06\n", {"time_unit": "date"},
     [("a", "x", 1125964801), ("b", "y", 1125964800)]),
    ("events.jsonl", b'{"user": "a", "item": "x", "time": "2005-09-06T02:00:00+02:00"}\n', {"time_unit": "date"},
     [("a", "x", 1125964800)]),
    ("events.tsv", b"user\titem\ttime\na\tx\t1500\n", {"time_unit": "ms"}, [("a", "x", 1500)]),
]  # fmt: skip


def config(path, **settings):
    return DataConfig.model_validate({"source": str(path), **settings})


def rows(path, **settings):
    table = read(config(path, **settings)).table
    return list(zip(*(table.column(name).to_pylist() for name in ("user", "item", "time")), strict=True))


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        end = next(end for end in (".gz", ".zst", "") if name.endswith(end))
        path.write_bytes(COMPRESS[end](content))
        return path

    return write


def test_the_config_knows_every_format():
    named = typing.get_args(DataConfig.model_fields["format"].annotation)
    assert set(named) == {*LAYOUTS, "auto", "synthetic"}


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("name", "content", "settings", "expected"), SAMPLES)
def test_each_published_layout_is_read(file, name, content, settings, expected, end):
    assert rows(file(name + end, content), **settings) == expected
    assert rows(file(name + end, content.replace(b"\n", b"\r\n")), **settings) == expected


def test_what_counts_thousandths_says_so(file):
    found = read(config(file("log_standard_4_08_to_4_21_1k.csv", KUAIRAND)))
    assert (found.per_second, found.floored_times) == (1000, 0)
    assert read(config(file("LFM-1b_LEs.txt", LFM))).per_second == 1


def test_yambda_is_read_flat_and_sequential(tmp_path):
    flat = {"uid": pa.array([100, 100, 200], pa.uint32()), "timestamp": pa.array([39420, 39425, 0], pa.uint32()),
            "item_id": pa.array([8326270, 1286114, 3], pa.uint32()), "is_organic": pa.array([0, 1, 1])}  # fmt: skip
    pq.write_table(pa.table(flat), tmp_path / "listens.parquet")
    expected = [("100", "8326270", 39420), ("100", "1286114", 39425), ("200", "3", 0)]
    assert rows(tmp_path / "listens.parquet", format="yambda") == expected
    assert rows(tmp_path / "listens.parquet", format="yambda", where={"is_organic": 1}) == expected[1:]
    lists = {"uid": pa.array([100, 200, 300], pa.uint32()), "timestamp": [[39420, 39425], [0], []],
             "item_id": [[8326270, 1286114], [3], []]}  # fmt: skip
    pq.write_table(pa.table(lists), tmp_path / "sequential.parquet")
    assert rows(tmp_path / "sequential.parquet", format="yambda") == expected
    lists["item_id"] = [[8326270], [3], []]
    pq.write_table(pa.table(lists), tmp_path / "sequential.parquet")
    with pytest.raises(
        SourceError, match=r"sequential.parquet: column timestamp has not as many values as column item_id \(row 1\)"
    ):
        rows(tmp_path / "sequential.parquet", format="yambda")


def test_parquet_takes_dates_and_text_and_finer_timestamps(tmp_path):
    def time(column, unit):
        table = {"user": ["a"], "item": ["x"], "time": column}
        pq.write_table(pa.table(table), tmp_path / "a.parquet")
        return rows(tmp_path / "a.parquet", time_unit=unit)[0][2]

    assert time(pa.array([13032], pa.date32()), "auto") == 13032 * 86_400
    assert time(["2005-09-06"], "date") == 1125964800
    assert time(pa.array([1500], pa.timestamp("ms")), "ms") == 1500
    assert time(pa.array([1_500_999], pa.timestamp("us")), "ms") == 1500
    assert time(pa.array([2], pa.timestamp("s")), "us") == 2_000_000
    with pytest.raises(SourceError, match="expected dates, timestamps or text"):
        time([5], "date")
    with pytest.raises(SourceError, match="holds no date such as 2005-09-06"):
        time(["soon"], "date")


MANY = {"mv_0000002.txt": b"2:\n5,3,2005-01-02\n", "mv_0000001.txt": b"1:\n5,3,2005-01-03\n6,3,2005-01-01\n"}
IN_MANY = [("5", "1", 1104710400), ("6", "1", 1104537600), ("5", "2", 1104624000)]


def test_a_folder_a_pattern_and_a_list_name_several_files(file, tmp_path):
    for name, content in MANY.items():
        file(f"training_set/{name}", content)
    file("training_set/movie_titles.txt", b"1,2003,Dinosaur Planet\n")
    folder = tmp_path / "training_set"
    assert rows(folder) == IN_MANY
    assert rows(folder / "mv_*.txt") == IN_MANY
    assert rows(tmp_path / "*" / "mv_*.txt", format="netflix") == IN_MANY
    names = [str(folder / name) for name in MANY]
    assert read(config(names[0])).table.num_rows == 1
    listed = DataConfig.model_validate({"source": names})
    assert DataConfig.model_validate_json(listed.model_dump_json()) == listed
    table = read(listed).table
    assert table.column("item").to_pylist() == ["2", "1", "1"]  # a list is in its own order


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["ratings.dat", "movies.dat"], "movielens"),
        (["part-0.csv.gz", "_SUCCESS"], "csv"),
        (["part-0.jsonl.zst"], "jsonl"),
        (["b.parquet", "a.csv"], "parquet"),
        (["LFM-1b_LEs.txt", "LFM-1b_users.txt"], "lfm-1b"),
        ([], "parquet"),
    ],
)
def test_a_folder_tells_its_format_by_what_is_in_it(file, tmp_path, names, expected):
    (tmp_path / "a").mkdir()
    for name in names:
        file(f"a/{name}", b"")
    assert format_of(config(tmp_path / "a")) == expected


@pytest.mark.parametrize(
    ("source", "settings", "expected"),
    [
        ("none/*.csv", {}, "none/*.csv: no file is named so"),
        ("a", {"format": "netflix"}, "a: the folder has no combined_data_*.txt or mv_*.txt files"),
        ("rating.csv", {}, "rating.csv: there is no such file; did you mean ratings.csv?"),
        ("a/x.csv", {"where": {"kind": "buy"}}, "a/x.csv: line 1: there is no column kind, only user, item, time"),
        ("a/x.csv", {"where": {"item": "z"}}, "a/x.csv: has no interactions in which item is z"),
    ],
)
def test_what_is_missing_is_said(file, tmp_path, monkeypatch, source, settings, expected):
    monkeypatch.chdir(tmp_path)
    file("a/x.csv", b"user,item,time\na,b,1\n")
    file("ratings.csv", b"")
    with pytest.raises(SourceError) as error:
        read(config(source, **settings))
    assert expected in str(error.value)


GOOD = b'{"user": "a", "item": "x", "time": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("combined_data_1.txt", b"5,3,2005-01-01\n1:\n", "line 1: is a rating above the first movie: '5,3,2005-01-01'"),
        ("combined_data_1.txt", b"1:\n5,3,2005-01-01\n5,3\n", "line 3: is neither a movie such as 1: nor a rating"),
        ("combined_data_1.txt", b"1:\n\n5,3,2005-13-01\n", "line 3: its date is '2005-13-01', expected a date"),
        ("combined_data_1.txt", b"1:\n5,3,\n", "line 2: its date is empty"),
        ("combined_data_1.txt", b"1:\n,3,2005-01-01\n", "line 2: has no user"),
        ("combined_data_1.txt", b"1:\n,,\n", "line 2: has no user"),
        ("combined_data_1.txt", b"1:\n\xff,3,2005-01-01\n", "line 2: is neither"),
        ("combined_data_1.txt", b"1:\n2:\n", "has no interactions; expected a line such as 1:"),
        ("combined_data_1.txt", b"", "has no interactions"),
        ("combined_data_1.txt", b"\n\n", "has no interactions"),
        ("LFM-1b_LEs.txt", LFM + b"1\t2\t3\t4\n", "line 4: has 4 fields, expected 5 (user, artist, album, track, time"),
        ("a.jsonl", GOOD + b"{'user': 'a'}\n", 'line 2: is no JSON (Expecting property name'),
        ("a.jsonl", GOOD + b"\n[1]\n", "line 3: is no JSON object: b'[1]'"),
        ("a.jsonl", b"[" * 100_000, "line 1: is no JSON"),
        ("a.jsonl", GOOD + b'{"user": "a", "time": 1}\n', "line 2: there is no column item, only user, time"),
        ("a.jsonl", b'{"users": "a", "item": 1, "time": 1}\n', "line 1: there is no column user, only users, item"),
        ("a.jsonl", GOOD + b'{"user": 7, "item": "x", "time": 1}\n', "line 2: column user is 7, but the first line"),
        ("a.jsonl", GOOD + b'{"user": "", "item": "x", "time": 1}\n', "line 2: column user is empty"),
        ("a.jsonl", GOOD + b'{"user": "a", "item": null, "time": 1}\n', "line 2: column item is empty"),
        ("a.jsonl", b'{"user": [], "item": "x", "time": 1}\n', "line 1: column user is [], expected text or a whole"),
        ("a.jsonl", GOOD + b'{"user": "a", "item": "x", "time": "soon"}\n', "line 2: column time is 'soon', expected"),
        ("a.jsonl", GOOD + b'{"user": "a", "item": "x", "time": null}\n', "line 2: column time is empty"),
        ("a.jsonl", GOOD + b'{"user": "a", "item": "x", "time": true}\n', "line 2: column time is true, expected a"),
        ("a.jsonl", GOOD + b'{"user": "\xff", "item": "x", "time": 1}\n', "line 2: is no JSON"),
        ("a.jsonl", b"", "has no interactions; expected a JSON object a line"),
    ],
)  # fmt: skip
def test_an_error_names_file_and_line(file, name, content, expected):
    path = file(name, content)
    with pytest.raises(SourceError) as error:
        read(config(path))
    assert str(path) in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["combined_data_1.txt", "a.jsonl", "LFM-1b_LEs.txt", "ratings.csv"])
@pytest.mark.parametrize(("end", "kind"), [(".gz", "gzip"), (".zst", "zstd")])
def test_a_compressed_file_that_was_cut_is_named(tmp_path, name, end, kind):
    path = tmp_path / (name + end)
    lines = {"a.jsonl": GOOD, "combined_data_1.txt": b"1:\n5,3,2005-01-01\n"}.get(name, b"userId,movieId,timestamp\n")
    path.write_bytes(COMPRESS[end](lines * 99)[:-5])
    with pytest.raises(SourceError, match=f"it is no whole {kind} file; fetch it again"):
        read(config(path))


@pytest.mark.parametrize("chosen", [{"where": {"rating": 5}}, {"time_unit": "ms"}, {"columns": {"item": "user"}}])
def test_what_netflix_does_not_know_is_refused(file, chosen):
    with pytest.raises(SourceError, match=r"do not go with data\.format=netflix"):
        read(config(file("combined_data_1.txt", NETFLIX), **chosen))


def test_dates_say_what_is_wrong(file):
    path = file("a.csv", b"user,item,time\na,b,2005-09-06\na,b,20050906\n")
    with pytest.raises(SourceError, match="line 3: column time is '20050906', expected a date such as 2005-09-06"):
        read(config(path, time_unit="date"))


def test_ratings_in_many_blocks_keep_their_movies(file, monkeypatch):
    monkeypatch.setattr("raysrec.data.sources.netflix.BLOCK_BYTES", 1000)
    movies = [(movie, movie % 7) for movie in range(1, 2000)]
    lines = [
        f"{movie}:\n" + "".join(f"{user},3,2005-01-0{1 + user % 9}\n" for user in range(count))
        for movie, count in movies
    ]
    found = rows(file("combined_data_1.txt", "".join(lines).encode()))
    assert found == [
        (str(user), str(movie), 1104537600 + user % 9 * 86_400) for movie, count in movies for user in range(count)
    ]
