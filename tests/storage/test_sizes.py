"""How much room something takes, while others work there."""

import os
import shutil

from storage.blobs import content_size


class _Listing:
    """What os.scandir gives, of a folder in which somebody removes something right behind it."""

    def __init__(self, entries):
        self._entries = entries

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._entries)

    def __enter__(self):
        return self

    def __exit__(self, *about):
        pass

    close = __exit__


def test_what_is_removed_while_its_size_is_asked_for_counts_nothing(tmp_path, monkeypatch):
    """A run that goes on makes and removes files in the cache, while the page tells what takes space."""
    looked_at, list_entries = tmp_path / "cache", os.scandir

    def fill():
        for name in ("stays", "goes", "folder/goes"):
            (looked_at / name).parent.mkdir(exist_ok=True, parents=True)
            (looked_at / name).write_bytes(b"1234")

    def scandir(path):
        mine = path in (looked_at, str(looked_at))
        if mine:
            fill()
        with list_entries(path) as found:
            entries = list(found)
        if mine:
            (looked_at / "goes").unlink()
            shutil.rmtree(looked_at / "folder")
        return _Listing(iter(entries))

    fill()
    assert content_size(looked_at) == 12
    monkeypatch.setattr(os, "scandir", scandir)
    assert content_size(looked_at) == 4
    assert content_size(looked_at / "goes") == 0
