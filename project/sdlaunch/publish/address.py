"""Where a result is published: `hub:user/name`, or the address of a folder in any file system of fsspec."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from sdjob.model.hub_cache import is_hub_name
from sdjob.problems import JobError, bad_setting

HUB = "hub"
_REMEDY = (
    "Write hub:USER/NAME, or the address of a folder, such as s3://BUCKET/FOLDER or oss://BUCKET/FOLDER."
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "oss": "ossfs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}


@dataclass(frozen=True)
class Address:
    """A place that can be named in messages: it holds no secret."""

    text: str
    scheme: str  # HUB, or that of fsspec
    path: str  # user/name, or what follows the scheme

    @property
    def has_folders(self) -> bool:
        """Whether folders have to be made. An object store has none, and would make a bucket that is misspelt."""
        return self.scheme not in _PACKAGES

    @property
    def package(self) -> tuple[str, str]:
        """The package that is imported to reach it beyond fsspec, and what to install."""
        if self.scheme == HUB:
            return "huggingface_hub", "huggingface_hub"
        name = _PACKAGES.get(self.scheme, "fsspec")
        return name, name


def parse(text: str, subject: str = "publish") -> Address:
    """Raises JobError (64)."""
    hub, colon, name = text.partition(":")
    if hub == HUB and colon:
        if is_hub_name(name):
            return Address(text, HUB, name)
        raise JobError(bad_setting(subject, f"found {text!r}, which names no repository", _REMEDY))
    scheme, separator, path = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme) or not path.strip("/") or not path.isprintable():
        raise JobError(bad_setting(subject, f"found {text!r}", _REMEDY))
    try:
        parts = urlsplit(text)
        login = parts.username or parts.password
    except ValueError as error:
        raise JobError(bad_setting(subject, f"is not an address ({error})", _REMEDY)) from None
    if login or parts.query:
        remedy = "Leave it out: keys are read from the environment only, such as AWS_ACCESS_KEY_ID."
        raise JobError(
            bad_setting(subject, "holds a login or a query, which would be shown and recorded", remedy)
        )
    return Address(text, scheme, path.rstrip("/"))
