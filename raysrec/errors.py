"""Errors that speak for themselves, and how one is found again in what Ray wraps around it."""

import difflib
import re
from collections.abc import Iterable, Iterator

_RAYS_ADVICE = re.compile(r"\nFailed to .+ after \d+/\d+ attempts.*", re.DOTALL)
"""What Ray Data writes into the text of an error that a task or actor raised."""


class ReadableError(ValueError):
    """Its text names what is wrong, where, and what to do; a user needs no traceback beside it."""


class LastingError(ReadableError):
    """Comes again however often it is tried: no worker is worth starting again for it."""


def readable(error: BaseException) -> ReadableError | None:
    """The ReadableError that this error is, or that a task or worker of Ray raised and it reports; None if neither.

    Ray hands on an error inside one or several of its own, and of some only the text.
    """
    wrapped = list(unwrapped(error))
    for inner in reversed(wrapped):
        # What Ray makes of an error is of the error's class too, but its text is the whole traceback.
        if isinstance(inner, ReadableError) and not hasattr(inner, "cause"):
            inner.args = (_RAYS_ADVICE.sub("", str(inner)), *inner.args[1:])
            return inner
    kinds = {kind.__name__: kind for kind in _kinds(ReadableError)}
    said = re.findall(rf"\b({'|'.join(kinds)}): (.+)", "\n".join(map(str, wrapped)))
    # A traceback ends with what was raised last.
    return kinds[said[-1][0]](said[-1][1]) if said else None


def did_you_mean(name: str, known: Iterable[str], *, least_alike: float = 0.6) -> str:
    """The part of a message that names the known name which is most alike; empty if none is alike enough (0 to 1)."""
    near = difflib.get_close_matches(name, list(known), 1, least_alike)
    return f"; did you mean {near[0]}?" if near else ""


def unwrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and all those that it was made of, in this process or by Ray; the innermost last."""
    found: list[BaseException] = []
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            failures = getattr(one, "worker_failures", None)
            waiting += [one.__cause__, getattr(one, "cause", None)]
            waiting += failures.values() if isinstance(failures, dict) else []
            waiting.append(getattr(one, "controller_failure", None))
    yield from found


def _kinds(kind: type[ReadableError]) -> Iterator[type[ReadableError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)
