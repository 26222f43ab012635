"""Stores: from a URI to a pyarrow file system, and from a store's failure to words.

Credentials come from the environment or from the files that the stores' own tools read (`~/.aws/credentials`,
`GOOGLE_APPLICATION_CREDENTIALS`); a URI that holds some is refused, because URIs are logged, saved and sent about.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from pyarrow import fs

from raysrec.errors import ReadableError, did_you_mean

DEFAULTS = {"max_attempts": "8", "connect_timeout": "5", "request_timeout": "30"}
"""How often a request is made before it has failed, with waits between that double; seconds until a store that cannot
be reached, or says nothing, counts as failing."""

OPTIONS = {
    "s3": (
        *("endpoint_override", "scheme", "region", "force_virtual_addressing", "anonymous"),
        *DEFAULTS,
    ),
    "gs": ("endpoint_override", "scheme", "anonymous", "request_timeout"),
    "file": (),
}
"""What may stand behind the `?` of a URI, by its scheme."""

_SECRETS = re.compile("key|secret|token|passw|credential|signature", re.IGNORECASE)


class PlaceError(ReadableError):
    """A place that cannot be named so, or a store that fails; the text says what came, what happened, what to do."""


@dataclass(frozen=True)
class Address:
    """What a URI says."""

    scheme: str
    path: str
    """Bucket and key."""
    query: str
    """What stands behind the `?`."""

    @property
    def options(self) -> dict[str, str]:
        """The query by names."""
        return dict(parse_qsl(self.query, keep_blank_values=True))

    def filesystem(self) -> fs.FileSystem:
        """The store, connected with this process's credentials when it is first asked for something.

        Raises:
            PlaceError: An option has no such value.
        """
        if self.scheme == "file":
            return fs.LocalFileSystem()
        given = DEFAULTS | self.options
        try:
            return _s3(given, self.path.partition("/")[0]) if self.scheme == "s3" else _gs(given)
        except ValueError as error:
            raise PlaceError(f"{self.scheme}://{self.path}: {error}") from None


def parse(uri: str) -> Address:
    """A URI in its parts; nothing is asked of the store.

    Raises:
        PlaceError: It holds credentials, or names a store or an option that is not known.
    """
    scheme, _, rest = uri.partition("://")
    path, _, query = rest.partition("?")
    address = Address(scheme, path if scheme == "file" else path.strip("/"), query)
    if scheme not in OPTIONS:
        near = did_you_mean(scheme, OPTIONS, least_alike=0.5)
        raise PlaceError(f"{scheme}://… is not a known store{near}; known: {', '.join(OPTIONS)}")
    if scheme != "file" and re.search("[@:]", path.partition("/")[0]):
        _refuse_credentials(scheme)
    for name in address.options:
        if name in OPTIONS[scheme]:
            continue
        if is_secret(name):
            _refuse_credentials(scheme)
        known = f"; known: {', '.join(OPTIONS[scheme]) or 'none'}"
        raise PlaceError(f"{scheme}://{path}: {name} is not an option{did_you_mean(name, OPTIONS[scheme])}{known}")
    if scheme != "file" and not rest.partition("/")[0]:
        raise PlaceError(f"{uri}: names no bucket; write {scheme}://bucket/folder")
    return address


def is_secret(name: str) -> bool:
    """Does an option of this name hold what nobody else should know?"""
    return bool(_SECRETS.search(name))


def failure_of(error: OSError, options: dict[str, str]) -> str | None:
    """What a store's failure means and what to do about it; None if the error is not a store's."""
    text = " ".join(str(error).split())
    if "AWS Error" not in text and "google::cloud::Status" not in text:
        return None
    tried = f", {(DEFAULTS | options)['max_attempts']} times" if "AWS Error" in text else ""
    for codes, words in _CAUSES.items():
        if re.search(codes, text):
            return f"{words.format(tried=tried)} ({text})"
    return text


_CAUSES = {
    "NO_SUCH_BUCKET|NoSuchBucket": "there is no such bucket; make it, or fix its name or the endpoint",
    "ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|EXPIRED_TOKEN|INVALID_CLIENT_TOKEN_ID|MISSING_AUTH|"
    "HTTP status 40[13]|PERMISSION_DENIED|UNAUTHENTICATED": "the store refuses access: the credentials are wrong or "
    "missing, or may not do this; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and "
    "~/.aws/credentials, on every machine (for gs:// GOOGLE_APPLICATION_CREDENTIALS)",
    "NETWORK_CONNECTION|REQUEST_TIMEOUT|curlCode|DEADLINE_EXCEEDED": "the store could not be reached, or its answers "
    "broke off{tried}; see that endpoint_override or AWS_ENDPOINT_URL is right and the store is up, and run this again",
    "HTTP status 5|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|UNAVAILABLE": "the store failed{tried}; "
    "run this again when it is well",
}
"""Codes of failures, and what they mean."""


class _S3FileSystem(fs.S3FileSystem):  # type: ignore[misc]  # pyarrow has no types
    """An S3 file system that leaves this process as its address: no credentials, and the same patience."""

    made_of: tuple[Callable[..., fs.FileSystem], tuple[Any, ...]]

    def __reduce__(self) -> tuple[Callable[..., fs.FileSystem], tuple[Any, ...]]:
        return self.made_of


def _s3(given: dict[str, str], bucket: str) -> fs.FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = (given.get("endpoint_override") or endpoint).rstrip("/").rpartition("://")
    region = given.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not host:
        with suppress(OSError):  # what is wrong with the bucket is said when it is used
            region = fs.resolve_s3_region(bucket)
    arguments = {
        "endpoint_override": host or None,
        "scheme": given.get("scheme") or scheme or "https",
        "region": region,
        "anonymous": _truth(given, "anonymous"),
        "force_virtual_addressing": _truth(given, "force_virtual_addressing"),
        "connect_timeout": _number(given, "connect_timeout"),
        "request_timeout": _number(given, "request_timeout"),
    }
    return _connect_s3(tuple(arguments.items()), int(_number(given, "max_attempts")))


@cache
def _connect_s3(arguments: tuple[tuple[str, Any], ...], attempts: int) -> fs.FileSystem:
    filesystem = _S3FileSystem(
        **dict(arguments), retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=attempts), background_writes=True
    )
    filesystem.made_of = (_connect_s3, (arguments, attempts))
    return filesystem


def _gs(given: dict[str, str]) -> fs.FileSystem:
    patience_s = _number(given, "request_timeout") * int(_number(given, "max_attempts")) / 2
    scheme, _, host = given.get("endpoint_override", "").rpartition("://")
    return fs.GcsFileSystem(
        anonymous=_truth(given, "anonymous"),
        endpoint_override=host or None,
        scheme=given.get("scheme") or scheme or None,
        retry_time_limit=timedelta(seconds=patience_s),
    )


def _truth(given: dict[str, str], name: str) -> bool:
    value = given.get(name, "false").lower()
    if value not in ("true", "false"):
        raise ValueError(f"{name}={value}: expected true or false")
    return value == "true"


def _number(given: dict[str, str], name: str) -> float:
    value = given[name]
    if not re.fullmatch(r"[1-9]\d{0,5}", value):
        raise ValueError(f"{name}={value}: expected a whole number from 1 on")
    return float(value)


def _refuse_credentials(scheme: str) -> NoReturn:
    raise PlaceError(
        f"{scheme}://…: the URI holds credentials, and it would be logged and saved with every run; take them out, "
        "and give them in the environment or in the store's own files"
    )
