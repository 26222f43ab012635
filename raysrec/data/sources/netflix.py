"""The Netflix Prize's ratings as interactions: a line `movie:`, then a line `user,rating,date` for each of its ratings.

A folder of the training set has a file per movie (`mv_0000001.txt`); the copy in four files (`combined_data_1.txt` …)
holds the same files in a row, so both are read alike. Described in the README of the training set.
"""

import re
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from raysrec.data.sources.files import NoInteractions, SourceError, SourceFile, file_in_words
from raysrec.data.sources.formats import LAYOUTS, Layout
from raysrec.data.sources.interactions import ID, INTERACTIONS_SCHEMA, Part, has_empty
from raysrec.data.sources.text import fault_of_time, numbered_lines

BLOCK_BYTES = 1 << 25
"""What Arrow reads at once; each block has its own dictionary of users, so small blocks cost memory."""

_MOVIE = re.compile(r"\d+:")


def read_netflix(file: SourceFile, layout: Layout) -> Part:
    """Every rating of a file in order; the movie is the item, the time is the start of the day in UTC.

    Raises:
        SourceError: The file is missing or empty, a line is neither a movie nor a rating of one, or another layout is
            asked for.
    """
    if layout != LAYOUTS["netflix"][0]:
        raise SourceError(f"{file}: data.columns, data.where and data.time_unit do not go with data.format=netflix")
    movies: list[tuple[int, str]] = []  # number of its line, id

    def movie(row: pacsv.InvalidRow) -> str:
        if not _MOVIE.fullmatch(row.text):
            return "error"
        movies.append((row.number, row.text[:-1]))
        return "skip"

    try:
        with file_in_words(file):
            ratings = _ratings(file, movie)
    except pa.ArrowInvalid as error:
        with file_in_words(file):
            _raise_first_fault(file)
        raise SourceError(f"{file}: {error}") from error
    movie_above_all = bool(movies) and movies[0][0] == 1
    blanks = has_empty(ratings.column("user"))
    if not movie_above_all or not len(ratings) or blanks or ratings.column("date").null_count:
        with file_in_words(file):
            _raise_first_fault(file)
    table = pa.table([ratings.column("user"), _items(movies, len(ratings)), _seconds(ratings)], INTERACTIONS_SCHEMA)
    if blanks:
        table = table.filter(pc.not_equal(table.column("user").cast(pa.string()), ""))
    return Part(table, 0)


def _ratings(file: SourceFile, other_line: Callable[[pacsv.InvalidRow], str]) -> pa.Table:
    """Users and dates, one row for each line that has three fields or none; other lines are handed over."""
    with file.open() as stream:
        return pacsv.read_csv(
            stream,
            read_options=pacsv.ReadOptions(
                column_names=["user", "rating", "date"],
                use_threads=False,  # or Arrow does not know the number of a line
                block_size=BLOCK_BYTES,
            ),
            parse_options=pacsv.ParseOptions(
                quote_char=False, ignore_empty_lines=False, invalid_row_handler=other_line
            ),
            convert_options=pacsv.ConvertOptions(
                column_types={"user": ID, "date": pa.date32()}, include_columns=["user", "date"], null_values=[""]
            ),
        )


def _items(movies: list[tuple[int, str]], ratings: int) -> pa.Array:
    """Each rating's movie: the last one that stands above it."""
    # Above the k-th movie stand k others; what else stands there are ratings.
    starts = np.array([number - 1 - above for above, (number, _) in enumerate(movies)])
    ids = pa.array([movie for _, movie in movies]).dictionary_encode()
    lengths = np.diff(starts, append=ratings)
    lengths[0] += starts[0]  # empty lines above the first movie
    return pa.DictionaryArray.from_arrays(np.repeat(ids.indices.to_numpy(), lengths), ids.dictionary)


def _seconds(ratings: pa.Table) -> pa.Array:
    days = pc.fill_null(ratings.column("date").cast(pa.int32()), 0)
    return pa.array(days.to_numpy().astype(np.int64) * 86_400)


def _raise_first_fault(file: SourceFile) -> None:
    """Raise about the first line that is wrong, or about there being no rating, if reading line by line finds that."""
    movie, ratings = False, 0
    for number, line in numbered_lines(file):
        if line:
            text = line.decode(errors="replace")
            is_movie = bool(_MOVIE.fullmatch(text))
            fault = None if is_movie else _fault_of_rating(text) if movie else "is a rating above the first movie"
            if fault:
                raise SourceError(f"{file}: line {number}: {fault}: {text[:80]!r}; fix or delete the line")
            movie, ratings = movie or is_movie, ratings + (not is_movie)
    if not ratings:
        raise NoInteractions(f"{file}: has no interactions; expected a line such as 1: and below it user,rating,date")


def _fault_of_rating(text: str) -> str | None:
    fields = text.split(",")
    if len(fields) != 3 or "\ufffd" in text:
        return "is neither a movie such as 1: nor a rating user,rating,date"
    if not fields[0]:
        return "has no user"
    fault = fault_of_time(fields[2], "date")
    return fault and f"its date is {fault.partition(';')[0]}"
