"""Where raw interactions come from: which format a source has, which files it consists of, and who reads them.

What is kept of them, how it is numbered and ordered is decided in `prepare.py`.
"""

from pyarrow import fs

from raysrec.config import DataConfig
from raysrec.data.files import SourceError, locate, similar_file
from raysrec.data.interactions import Interactions
from raysrec.data.parquet import read_parquet
from raysrec.data.synthetic import synthesize
from raysrec.data.text import Layout, read_text

KNOWN_NAMES = (
    "*.inter, ratings.dat, ratings.csv, *.csv, *.tsv (each also with .gz), *.parquet, or a folder of *.parquet"
)


def read(config: DataConfig) -> Interactions:
    """Every interaction of the source, in its order; ids are text as it stands there.

    A time is a whole number of seconds. `978300760.0` is one too; a true fraction is rounded down and counted, so an
    order within the same second becomes the order of the file.

    Raises:
        SourceError: The source is missing, empty, not in its format, or holds an empty id or a time that is no number.
    """
    kind = format_of(config)
    if kind == "synthetic":
        return Interactions.of(synthesize(config.synthetic), 0)
    if kind == "parquet":
        return read_parquet(config.source, *source_files(config), _columns(config))
    return read_text(config.source, _layout(config, kind))


def format_of(config: DataConfig) -> str:
    """The format of the source, by its name where the config says `auto`.

    Raises:
        SourceError: The name says nothing, or nothing is there.
    """
    if config.format != "auto":
        return config.format
    name = config.source.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".gz")
    if name == "synthetic":
        return "synthetic"
    if name.endswith(".inter"):
        return "recbole"
    if name == "ratings.dat" or (name == "ratings.csv" and config.columns == type(config.columns)()):
        return "movielens"
    if name.endswith((".csv", ".tsv")):
        return "csv"
    filesystem, path = locate(config.source)
    found = filesystem.get_file_info(path).type
    if name.endswith(".parquet") or found == fs.FileType.Directory:
        return "parquet"
    if found == fs.FileType.NotFound:
        raise SourceError(f"data.source={config.source}: there is no such file{similar_file(filesystem, path)}")
    raise SourceError(
        f"data.source={config.source}: the name does not tell the format; known names are {KNOWN_NAMES}; "
        "set data.format to recbole, movielens, csv or parquet"
    )


def separator_of(config: DataConfig) -> str:
    """What separates the columns of a CSV source: a tab in `*.tsv` unless the config says otherwise.

    Raises:
        SourceError: Two different characters.
    """
    separator = config.separator.replace("\\t", "\t")
    if separator == "," and config.source.lower().removesuffix(".gz").endswith(".tsv"):
        return "\t"
    if len(separator) == 2 and separator[0] != separator[1]:
        raise SourceError(f"data.separator={separator!r}: two different characters; write one, or one twice as in '::'")
    return separator


def source_files(config: DataConfig) -> tuple[fs.FileSystem, list[str]]:
    """The files a source consists of, in the order they are read, and where they lie; none for `synthetic`.

    Raises:
        SourceError: There is no such file, or a folder has no Parquet files.
    """
    kind = format_of(config)
    if kind == "synthetic":
        return fs.LocalFileSystem(), []
    filesystem, path = locate(config.source)
    found = filesystem.get_file_info(path)
    if found.type == fs.FileType.File:
        return filesystem, [path]
    if found.type == fs.FileType.NotFound:
        raise SourceError(f"data.source={config.source}: there is no such file" + similar_file(filesystem, path))
    if kind != "parquet":
        raise SourceError(f"data.source={config.source}: is a folder; the {kind} format is one file, name it")
    paths = [info.path for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True))]
    paths = sorted(name for name in paths if name.endswith(".parquet") and not _hidden(name[len(path) :]))
    if not paths:
        raise SourceError(f"data.source={config.source}: the folder has no *.parquet files")
    return filesystem, paths


def _layout(config: DataConfig, kind: str) -> Layout:
    if kind == "recbole":
        return Layout("\t", quoted=False, columns=("user_id", "item_id", "timestamp"), typed=True)
    if kind == "movielens":
        if config.source.lower().removesuffix(".gz").endswith(".dat"):
            names = ("userId", "movieId", "rating", "timestamp")
            return Layout("::", quoted=False, columns=("userId", "movieId", "timestamp"), names=names)
        return Layout(",", quoted=True, columns=("userId", "movieId", "timestamp"))
    separator = separator_of(config)
    return Layout(separator, quoted=len(separator) == 1, columns=_columns(config))


def _columns(config: DataConfig) -> tuple[str, str, str]:
    return config.columns.user, config.columns.item, config.columns.time


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))
