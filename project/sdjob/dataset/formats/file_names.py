"""Names of files as other systems write them, found among the files that are there."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from posixpath import normpath
from urllib.parse import unquote

from sdjob.files import unreadable
from sdjob.problems import JobError


@dataclass
class FileNames:
    """The names below a folder, listed once for each folder instead of a stat for each file."""

    folder: Path
    _entries: dict[str, dict[str, str]] = field(default_factory=dict)  # folder → name, or its NFC form → name

    def find(self, name: str) -> str | None:
        """The path below the folder that a relative path means; with backslashes, accents composed or not, or quoted
        as in a URL, unless it exists as it is written. Raises JobError."""
        return (
            self._walked(name)
            or self._walked(normpath(name.replace("\\", "/")))
            or self._walked(unquote(name))
        )

    def like(self, name: str) -> str | None:
        """A file with another suffix or in other case, to be shown."""
        folder, _, base = name.replace("\\", "/").rpartition("/")
        stem = base.rpartition(".")[0].lower()
        there = self._names(self._walked(folder) or "") if folder else self._names("")
        return next((each for each in there.values() if each.rpartition(".")[0].lower() == stem), None)

    def _walked(self, name: str) -> str | None:
        path = ""
        for part in name.split("/"):
            there = self._names(path)
            actual = there.get(part) or there.get(unicodedata.normalize("NFC", part))
            if actual is None:
                return None
            path = f"{path}/{actual}" if path else actual
        return path

    def _names(self, folder: str) -> dict[str, str]:
        if folder not in self._entries:
            try:
                with os.scandir(self.folder / folder) as entries:
                    names = [entry.name for entry in entries]
            except (FileNotFoundError, NotADirectoryError):
                names = []
            except OSError as error:
                raise JobError(unreadable(self.folder / folder, error)) from error
            composed = {unicodedata.normalize("NFC", name): name for name in names if not name.isascii()}
            self._entries[folder] = composed | {name: name for name in names}
        return self._entries[folder]
