"""What all verbs share on the command line: `--config`, `key=value` and `--help`, how they end, and how errors look."""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from raysrec.config.keys import keys_of
from raysrec.config.run import RunConfig
from raysrec.errors import ReadableError
from raysrec.models import MODELS
from raysrec.schema import Section
from raysrec.stopping import INTERRUPTED, ends_when_terminated


def run_verb(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> NoReturn:
    """Run a verb; what its user can fix is printed as one message without a traceback, with exit code 2.

    Ended by SIGTERM, at whatever point, it exits with `STOPPED`; by Ctrl-C, with `INTERRUPTED`.
    """
    try:
        with ends_when_terminated():
            main(parser.parse_intermixed_args())  # options and settings in any order
    except (ReadableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(0)


def config_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser with `--config` and `key=value`, whose help lists every key of the schema."""
    parser = argparse.ArgumentParser(
        prog=f"python -m raysrec.{verb}",
        description=description,
        epilog=help_of_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        metavar="FILE",
        help="YAML settings, here or in a store; may be given several times, a later file lies over an earlier one",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings laid over the files")
    return parser


def help_of_keys() -> str:
    """Every key with its default and meaning, as the schema states them."""
    lines = ["keys:"]
    lines += describe_keys(RunConfig)
    for name, model in MODELS.items():
        lines += ["", f"keys of model.name={name}:", *describe_keys(model.Config, "model.")]
    return "\n".join(lines)


def describe_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    """Lines of help: the keys of a section and of those in it, with their defaults and meanings."""
    empty = "''"
    for name, default, meaning in keys_of(section, prefix):
        yield f"  {name} ({default or empty})\n      {meaning}"
