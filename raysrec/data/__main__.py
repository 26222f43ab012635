"""Show what a prepared data set is: `python -m raysrec.data prepared/… --picture data.png`."""

import argparse
from pathlib import Path

from raysrec.command_line import help_of_keys, run_verb
from raysrec.config.files import ConfigError
from raysrec.config.loading import load
from raysrec.data.picture import draw
from raysrec.data.prepared import PreparedData
from raysrec.data.preparing.fingerprint import prepared_folder
from raysrec.data.statistics import Statistics, describe
from raysrec.place import Place


def main(arguments: argparse.Namespace) -> None:
    """Print the description, and draw the picture if one is asked for."""
    data = PreparedData.open(_folder(arguments))
    found = Statistics.of(data)
    print(describe(data, found))
    if arguments.picture:
        draw(data, found, arguments.picture)
        print(f"picture in {arguments.picture}")


def parser() -> argparse.ArgumentParser:
    """Reads the command line."""
    command_line = argparse.ArgumentParser(
        prog="python -m raysrec.data",
        description="Show what a prepared data set is: sizes, distributions, rules, split, leakage, files.",
        epilog=help_of_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command_line.add_argument(
        "words",
        nargs="*",
        metavar="FOLDER or key=value",
        help="the folder, here or in a store, or settings over --config",
    )
    command_line.add_argument("--config", action="append", metavar="FILE", help="YAML settings that name the data")
    command_line.add_argument("--picture", type=Path, metavar="FILE", help="draw the distributions; needs matplotlib")
    return command_line


def _folder(arguments: argparse.Namespace) -> Place:
    if arguments.config:
        return prepared_folder(load(arguments.config, arguments.words).data)
    if len(arguments.words) != 1:
        raise ConfigError("name one prepared folder, such as prepared/0123456789abcdef, or the --config of its data")
    return Place.of(arguments.words[0])


if __name__ == "__main__":
    run_verb(main, parser())
