"""Folders in their place that a killed process has not finished, told from those that are being finished."""

from core.files import publish
from core.files.publish import is_unfinished, publication


def test_a_folder_that_is_finished_while_it_is_looked_at_is_not_taken_for_unfinished(tmp_path, monkeypatch):
    """Who takes it for unfinished removes it: an export, or a base model that is registered by now."""
    target, abandoned = tmp_path / "merged", publish.is_abandoned
    writing = publication(target)
    out = writing.__enter__()
    (out.folder / "weights").write_text("many")
    out.publish()
    assert not is_unfinished(target), "its process lives"

    def looked(folder, seconds=0.0):
        if not out.finished:
            out.finish()
            writing.__exit__(None, None, None)
        return abandoned(folder, seconds)

    monkeypatch.setattr(publish, "is_abandoned", looked)
    assert not is_unfinished(target)
    assert [path.name for path in target.iterdir()] == ["weights"]
