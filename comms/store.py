"""Payloads by content: what a member made or fetched, kept as its round log.

A payload is a file named by the SHA-256 of its bytes, so nothing in the store can be wrong without being noticed, and
storing twice is storing once.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_DIGEST = re.compile(r"[0-9a-f]{64}")


def digest_of(payload: bytes) -> str:
    """The name of a payload: its SHA-256, in hex."""
    return hashlib.sha256(payload).hexdigest()


class Incoming:
    """A payload on its way into a store: on the disk as it comes, never whole in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        """Takes the next bytes. OSError when they can't be written."""
        self._file.write(data)
        self._hash.update(data)
        self.num_bytes += len(data)

    @property
    def digest(self) -> str:
        """The name of what has come so far."""
        return self._hash.hexdigest()


class PayloadStore:
    """A folder of payloads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, payload: bytes) -> str:
        """Keeps `payload` and returns its digest. OSError when it can't be written; then nothing is kept."""
        digest = digest_of(payload)
        if self.get(digest) is None:  # by content: a torn file of that name is written anew
            with self.incoming() as incoming:
                incoming.write(payload)
        return digest

    @contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """Keeps what is written inside, under its digest, when that ends well; else nothing."""
        # Not synced to the disk: a payload torn by a power cut does not match its name, and is fetched again.
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".new-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                incoming = Incoming(file)
                yield incoming
            Path(temporary).replace(self._path(incoming.digest))
        except BaseException:
            with suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise

    def get(self, digest: str) -> bytes | None:
        """The payload named `digest`, or None when it is not here, or no longer what it was."""
        try:
            payload = self._path(digest).read_bytes()
        except FileNotFoundError:
            return None
        if digest_of(payload) != digest:
            self._path(digest).unlink(missing_ok=True)
            return None
        return payload

    def forget(self, digest: str) -> None:
        """Deletes a payload, if it is here."""
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a SHA-256 in hex")
        return self._folder / digest
