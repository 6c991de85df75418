"""Rows that may be more than memory holds: the first stay in it, the others in a file without a name.

Only what this process wrote is read back, through a file that no other can open by name.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from luthier.data.conversation import Conversation, Message, Source
from luthier.errors import DataError, Problem
from luthier.hub.cache import cache_dir

IN_MEMORY = 10_000  # rows, as they are: few are as quick as a list
BLOCK = 128  # rows that are written, and read again, at once

T = TypeVar("T")
Indices = npt.NDArray[np.int64]


class Stored(Sequence[T]):
    """Rows in the order in which they were appended.

    Args:
        pack, unpack: a row as plain values, and back.
    """

    def __init__(self, pack: Callable[[T], Any], unpack: Callable[[Any], T]) -> None:
        self._pack, self._unpack = pack, unpack
        self._first: list[T] = []
        self._starts = array("q")  # of each block in the file
        self._filling: list[Any] = []
        self._end = 0
        self._read: tuple[int, list[T]] = (-1, [])

    def append(self, row: T) -> None:
        """Raises DataError where the disk is full."""
        if len(self._first) < IN_MEMORY:
            self._first.append(row)
            return
        self._filling.append(self._pack(row))
        if len(self._filling) == BLOCK:
            self._write()

    def __len__(self) -> int:
        return len(self._first) + len(self._starts) * BLOCK + len(self._filling)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        if index < len(self._first):
            return self._first[index]
        number, place = divmod(index - len(self._first), BLOCK)
        if number == len(self._starts):
            return self._unpack(self._filling[place])
        if self._read[0] != number:
            self._read = number, self._block(number)
        return self._read[1][place]

    def __iter__(self) -> Iterator[T]:
        yield from self._first
        for number in range(len(self._starts)):
            yield from self._block(number)
        yield from map(self._unpack, self._filling)

    def _block(self, number: int) -> list[T]:
        self._file.seek(self._starts[number])
        return [self._unpack(row) for row in pickle.load(self._file)]

    def _write(self) -> None:
        folder = cache_dir()
        try:
            if not self._starts:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 -- it lives as long as the rows
            self._file.seek(self._end)
            pickle.dump(self._filling, self._file, protocol=pickle.HIGHEST_PROTOCOL)
            self._starts.append(self._end)
            self._end, self._filling = self._file.tell(), []
        except OSError as error:
            what = f"cannot hold the rows while they are looked at: {error.strerror or error}"
            fix = "free some space there, or set LUTHIER_HOME to a folder on another disk"
            raise DataError(Problem(str(folder), what, fix)) from None


def stored_conversations() -> Stored[Conversation]:
    """Room for conversations, however many."""
    return Stored(_pack, _unpack)


def _pack(row: Conversation) -> Any:
    source = row.source
    turns = [(m.role, m.content, m.train, m.reasoning) for m in row.messages]
    return source.file, source.number, source.unit, turns


def _unpack(row: Any) -> Conversation:
    file, number, unit, turns = row
    return Conversation(tuple(Message(*turn) for turn in turns), Source(sys.intern(file), number, unit))


class Part(Sequence[T]):
    """Some of a sequence's rows, by their indices [N]."""

    def __init__(self, rows: Sequence[T], indices: Indices) -> None:
        self.rows, self.indices = rows, indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self.rows[at] for at in self.indices[index].tolist()]
        return self.rows[int(self.indices[index])]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self.indices), BLOCK):  # tolist() of all would make an object of each index
            for index in self.indices[start : start + BLOCK].tolist():
                yield self.rows[index]


class Digests:
    """Hashes of 16 bytes, without an object for each."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def append(self, digest: bytes) -> None:
        self._bytes += digest

    def __len__(self) -> int:
        return len(self._bytes) // 16

    def array(self) -> npt.NDArray[np.uint64]:
        """[N, 2], in the order of the hashes' bytes."""
        return np.frombuffer(bytes(self._bytes), ">u8").reshape(-1, 2).astype(np.uint64)


def first_of(keys: npt.NDArray[np.uint64]) -> Indices:
    """For each row of `keys` [N, 2] the index of the first row that is the same: [N].

    >>> first_of(np.array([[7, 0], [3, 0], [7, 0]], np.uint64)).tolist()
    [0, 1, 0]
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of the same ones the first stays first
    ordered = keys[order]
    begins = np.concatenate(([True], (ordered[1:] != ordered[:-1]).any(axis=1)))[: len(keys)]
    first = np.empty(len(keys), np.int64)
    first[order] = order[begins][np.cumsum(begins) - 1]
    return first
