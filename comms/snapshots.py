"""Snapshots: a large file that many members hold alike, handed out in parts to one that has none of it.

    file    -> parts of PART_BYTES, each a payload named by its SHA-256
    parts   -> index, a payload that lists them in order, and whose digest therefore names the whole file

A member *lends* its file: parts are read from it when they are asked for, so that serving a snapshot takes no second
copy. Lent files stay open, and with them their content, while they are among the newest or somebody still reads them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from comms import wire
from comms.store import digest_of
from protos import payload_pb2 as pb

PART_BYTES = 8 * 2**20
MOST_INDEX_BYTES = 2**21
"""An index of 400 GiB in parts."""
_KEPT = 2
_READ_LATELY_S = 120.0
_ASKED_FOR_WITHIN_S = 10.0
"""Who is told of a snapshot asks for it by then; a file that nobody asked for must not stay open for longer."""


@dataclass(frozen=True)
class Part:
    """A range of a snapshot's file."""

    digest: str
    num_bytes: int
    offset: int


def encode_index(parts: tuple[Part, ...]) -> bytes:
    """The payload that lists `parts`."""
    listed = [pb.SnapshotPart(digest=bytes.fromhex(part.digest), num_bytes=part.num_bytes) for part in parts]
    return pb.SnapshotIndex(parts=listed).SerializeToString(deterministic=True)


def parts_bytes(num_bytes: int) -> tuple[int, ...]:
    """How long the parts of a file are that is `num_bytes` long."""
    full, rest = divmod(num_bytes, PART_BYTES)
    return (PART_BYTES,) * full + ((rest,) if rest else ())


def index_bytes(num_bytes: int) -> int:
    """How long the index of a file is that is `num_bytes` long."""
    digest = "0" * 2 * wire.DIGEST_BYTES
    return len(encode_index(tuple(Part(digest, part_bytes, 0) for part_bytes in parts_bytes(num_bytes))))


def decode_index(index: bytes, most_bytes: int) -> tuple[Part, ...]:
    """The parts that an index lists; WireError when it is none, or when they come to more than `most_bytes`."""
    try:
        listed = pb.SnapshotIndex.FromString(index).parts
    except Exception as error:
        raise wire.WireError(f"a snapshot's index cannot be read: {error}") from error
    parts, offset = list[Part](), 0
    for part in listed:
        if not 0 < part.num_bytes <= PART_BYTES:
            raise wire.WireError(f"a snapshot's part has {part.num_bytes} bytes, and 1 to {PART_BYTES} are taken")
        parts.append(Part(wire.digest(part.digest, "index.digest"), part.num_bytes, offset))
        offset += part.num_bytes
        if offset > most_bytes:
            raise wire.WireError(f"a snapshot comes to more than the {most_bytes} bytes that it can have")
    return tuple(parts)


@dataclass
class _Lent:
    """An open file, and where its parts are."""

    descriptor: int
    index: bytes
    parts: dict[str, Part]
    read_at_s: float

    def get(self, digest: str) -> bytes | None:
        part = self.parts.get(digest)
        return None if part is None else os.pread(self.descriptor, part.num_bytes, part.offset)


class Lender:
    """The files that one member lends; safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._lent: dict[str, _Lent] = {}
        """By the digest of the index, oldest first."""

    def lend(self, path: Path) -> tuple[str, int]:
        """Reads the file and serves it from now on; digest and length of its index. OSError when it can't be read."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            parts = _parts_of(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        index = encode_index(parts)
        digest = digest_of(index)
        unread_s = self._clock() - _READ_LATELY_S + _ASKED_FOR_WITHIN_S
        with self._lock:
            if digest in self._lent:
                os.close(descriptor)
            else:
                self._lent[digest] = _Lent(descriptor, index, {part.digest: part for part in parts}, unread_s)
            self._drop_old()
        return digest, len(index)

    def get(self, digest: str) -> bytes | None:
        """A part, or an index, of what is lent; None when it is of nothing, or no longer what it was."""
        with self._lock:
            for index_digest, lent in self._lent.items():
                payload = lent.index if index_digest == digest else lent.get(digest)
                if payload is not None:
                    lent.read_at_s = self._clock()
                    return payload if digest_of(payload) == digest else None
        return None

    def close(self) -> None:
        """Lends nothing any more."""
        with self._lock:
            for lent in self._lent.values():
                os.close(lent.descriptor)
            self._lent.clear()

    def _drop_old(self) -> None:
        for digest in list(self._lent)[:-_KEPT]:
            if self._clock() - self._lent[digest].read_at_s > _READ_LATELY_S:
                os.close(self._lent.pop(digest).descriptor)


def _parts_of(descriptor: int) -> tuple[Part, ...]:
    parts, offset = list[Part](), 0
    while content := os.pread(descriptor, PART_BYTES, offset):
        parts.append(Part(digest_of(content), len(content), offset))
        offset += len(content)
    return tuple(parts)
