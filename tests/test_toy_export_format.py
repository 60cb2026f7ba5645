"""An export format from one file: this one. It joins as a plug-in, and is used from the job to the page."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from core.export.formats import AUTO, ExportFormat
from core.options import Config, option
from core.reporting import Report
from core.seam import PLUGINS_VARIABLE

if TYPE_CHECKING:
    from core.export.duties import Exported, Exporting, Facts, Finding


@dataclass(frozen=True)
class NpzOptions(Config):
    """What only this format asks."""

    compressed: bool = option(False, "Compressed", "Smaller, and slower to read.")


class Npz(ExportFormat):
    """ΔW [out, in] of each layer, in one file of NumPy's."""

    name, label, order = "npz", "NumPy arrays", 90
    help = "ΔW by layer, for NumPy."
    options = NpzOptions
    merges = False
    dtypes = (AUTO, "float32", "float64")
    ending = ".npz"

    def write(self, what: Exporting, staging: Path, report: Report) -> Facts:
        import numpy as np

        assert isinstance(what.own, NpzOptions)
        save = np.savez_compressed if what.own.compressed else np.savez
        dtype = "float32" if what.config.dtype == AUTO else what.config.dtype
        deltas = {path: one.delta_weight().numpy() for path, one in what.adapter.layers.items()}
        save(staging / f"delta{self.ending}", **{path: one.astype(dtype) for path, one in deltas.items()})
        return {"arrays": len(deltas)}

    def check(self, what: Exported, report: Report) -> Finding:
        import numpy as np

        from core.export.duties import FAILED, PASSED, Finding

        wanted = {path: one.delta_weight().numpy() for path, one in what.adapter.layers.items()}
        with np.load(self.only_file(what.folder)) as found:
            same = set(found) == set(wanted) and all(
                np.array_equal(found[path], wanted[path]) for path in found
            )
        return Finding(PASSED if same else FAILED, f"{'Passed' if same else 'FAILED'}: read back.")

    def describe(self, base: str, adapter: str) -> str:
        return f"What the LoRA adapter {adapter} adds to {base}, as arrays."


KINDS = (Npz(),)


@pytest.fixture
def plugged(monkeypatch):
    monkeypatch.setenv(PLUGINS_VARIABLE, "tests.test_toy_export_format")


@pytest.fixture
def jobs_here(workbench, checked_here, plugged, monkeypatch):
    """Jobs that the page and the command line start are done in this process."""
    from app.jobs.kinds import JOBS, JobContext
    from app.service.jobs import Jobs
    from tests.workbenches import do_job

    def start(self, kind, arguments):
        context = JobContext(workbench.settings, workbench.registry)
        return do_job(workbench, kind, JOBS.get(kind).validate(context, arguments))

    monkeypatch.setattr(Jobs, "start", start)


def deltas(workbench, name, folder):
    """The largest difference between the arrays in a folder and ΔW of the adapter, and the arrays' dtype."""
    import numpy as np

    from app.jobs.adapters import load_row
    from storage.tables import Adapter, Base

    row = workbench.registry.find(Adapter, name)
    adapter = load_row(workbench.registry, row, workbench.registry.find(Base, "llama"))
    with np.load(folder / "delta.npz") as found:
        assert set(found) == set(adapter.layers)
        apart = [abs(found[path] - one.delta_weight().numpy()).max() for path, one in adapter.layers.items()]
        return max(apart), {str(found[path].dtype) for path in found}


def test_the_job_writes_checks_and_describes_it(workbench, trained, checked_here, plugged, tmp_path):
    from storage.tables import Export
    from tests.workbenches import do_job

    trained("mine")
    config = {"format": "npz", "dtype": "float64", "compressed": "yes"}
    job = do_job(
        workbench, "export_adapter", {"adapter": "mine", "folder": str(tmp_path / "out"), "config": config}
    )
    assert (job.state, job.result["verdict"], job.result["base"]) == ("finished", "passed", None), job.message
    assert deltas(workbench, "mine", tmp_path / "out") == (0, {"float64"})
    (row,) = workbench.registry.all(Export)
    assert (row.format, row.sentence, row.check["arrays"]) == ("npz", "Passed: read back.", 14)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "What the LoRA adapter mine adds to llama, as arrays." in card
    assert "library_name: peft" in card


def test_what_is_not_as_it_was_written_does_not_pass(workbench, trained, checked_here, plugged, tmp_path):
    import numpy as np

    from core.export.check_process import check
    from storage.tables import Adapter, Base
    from tests.workbenches import do_job

    trained("mine")
    target = tmp_path / "out"
    do_job(
        workbench, "export_adapter", {"adapter": "mine", "folder": str(target), "config": {"format": "npz"}}
    )
    with np.load(target / "delta.npz") as found:
        np.savez(target / "delta.npz", **{path: found[path] * 1.001 for path in found})
    adapter = workbench.registry.blobs.path(workbench.registry.find(Adapter, "mine").digest)
    base = workbench.registry.find(Base, "llama").folder
    question = {"base": base, "adapter": str(adapter), "target": str(target), "config": {"format": "npz"}}
    found = check({**question, "template": ""}, lambda progress: None)
    assert (found["verdict"], found["sentence"]) == ("failed", "FAILED: read back.")


def test_the_command_line_offers_and_writes_it(workbench, trained, jobs_here, settings, tmp_path):
    from tests.app.test_cli import run

    trained("mine")
    assert "ollama, vllm, npz." in " ".join(run(settings, "export", "--help").output.split())
    asked = ["export", "--adapter", "mine", "--format", "npz", "--set", "compressed=yes"]
    done = run(settings, *asked, "--to", tmp_path / "out")
    assert (done.exit_code, "Passed: read back." in done.stdout) == (0, True), done.output
    assert deltas(workbench, "mine", tmp_path / "out") == (0, {"float32"})
    with zipfile.ZipFile(tmp_path / "out" / "delta.npz") as archive:
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    refused = run(settings, *asked, "--dtype", "q8_0", "--to", tmp_path / "other")
    assert (refused.exit_code, "npz takes float32, float64, not q8_0." in refused.stderr) == (1, True)


def test_the_page_offers_and_writes_it(workbench, trained, jobs_here):
    import gradio as gr

    from app.web.parts.routes import router
    from app.web.parts.shell import Shell
    from app.web.sections.export import section
    from storage.tables import Export

    trained("mine")
    with gr.Blocks() as page:
        changed = gr.State("")
        section.build(Shell(workbench, page, changed, router()))
    fields = {one.label: one for one in page.blocks.values() if getattr(one, "label", None)}
    assert ("NumPy arrays: ΔW by layer, for NumPy.", "npz") in fields["Format"].choices
    assert not fields["Compressed"].visible
    labels = ["Adapter", "Folder", "Format", "Weights as", "Shard size (GB)", "Merge onto", "Compressed"]
    starts = (one for one in page.fns.values() if [given.label for given in one.inputs] == labels)
    next(starts).fn("mine", "", "npz", "float64", 0, "original", True)
    (row,) = workbench.registry.all(Export)
    assert (row.format, row.verdict) == ("npz", "passed")
    assert deltas(workbench, "mine", Path(row.folder)) == (0, {"float64"})


def test_without_the_plug_in_nobody_knows_it(workbench, monkeypatch):
    from core.errors import InvalidConfig
    from core.export.config import ExportConfig, export_options

    monkeypatch.delenv(PLUGINS_VARIABLE, raising=False)
    assert "compressed" not in {one.name for one in export_options()}
    with pytest.raises(InvalidConfig, match="format must be one of safetensors"):
        ExportConfig(format="npz")
