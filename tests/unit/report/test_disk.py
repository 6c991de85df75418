"""Whole or not there; and what a full disk looks like through the libraries that write."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from luthier.report import disk


def test_a_folder_takes_its_place_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    with disk.whole_folder(folder) as beside:
        beside.mkdir()
        (beside / "a").write_text("1")
        assert (beside.name, folder.exists()) == (".adapter.partial", False)
    with pytest.raises(KeyError), disk.whole_folder(folder) as beside:
        beside.mkdir()
        (beside / "a").write_text("2")
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert (folder / "a").read_text() == "1"


def wrapped(text: str, cause: Exception) -> Exception:
    try:
        raise RuntimeError(text) from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EFBIG, "File too large"), True),
        (RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/3"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (wrapped("could not save", OSError(errno.ENOSPC, "full")), True),
        (disk.DiskFull("checkpoint-4", 10), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("something else"), False),
    ],
)
def test_what_a_full_disk_looks_like(error: Exception, full: bool) -> None:
    assert disk.is_full(error) is full


def test_free_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert disk.free_bytes(tmp_path / "a" / "b") > 0
