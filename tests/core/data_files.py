"""Files of rows for tests, and importing them."""

import json

from core.data.dataset_file import DatasetFile, Findings
from core.data.detection import detect_file
from core.data.importing import import_files
from core.data.zipped import Source

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
GOOD = {"messages": MESSAGES}


def take(tmp_path, name, content, mapping=None, **options):
    """Import one file; its summary, examples and findings as {row number: code}."""
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    folder = tmp_path / "rows"
    folder.mkdir()
    mapping = mapping or detect_file(source).require(name).mapping
    summary = import_files([Source(source, name)], mapping, folder, **options)
    rows = DatasetFile(folder)
    numbers = rows.column("row")
    found = [
        (numbers[one.index] if one.index >= 0 else 0, one.code, one.detail)
        for one in Findings.read(folder).some()
    ]
    return summary, rows, found


def lines(*rows):
    """Rows as JSONL."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(tmp_path, name, content):
    """A file with this text."""
    (tmp_path / name).write_text(content)
    return tmp_path / name
