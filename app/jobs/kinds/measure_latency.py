"""The job that measures what an adapter adds to the time of an answer, beside the base and merged into it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.jobs.kinds import Arguments, JobContext, JobKind, NextStep
from app.shared.adapter_labels import labels_of_row
from app.shared.bases import base_for, source_of
from app.shared.references import name_in, refer, referred
from core.errors import InvalidConfig
from storage.tables import Adapter, Run

if TYPE_CHECKING:
    from core.base_model.load import ResidentBase
    from core.lora.adapter import AdapterWeights

_POLL_SECONDS = 1.0


class MeasureLatency(JobKind):
    """Arguments: adapter."""

    name, label, order = "measure_latency", "Measure an adapter's speed", 95
    help = "Time answers of the base, of base + adapter, and of both merged, in turns on this device."
    place = "Adapters, Speed, or adapters speed"

    def title(self, arguments: Mapping[str, Any]) -> str:
        return f"Measure the speed of {name_in(arguments['adapter'])}"

    def validate(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Raises NotFound, InvalidConfig for a classifier."""
        row = referred(context.registry, Adapter, arguments["adapter"])
        if labels_of_row(context.registry, row) is not None:
            raise InvalidConfig(f"{row.name} tells labels and writes no answers, so none can be timed.")
        return {"adapter": refer(row)}

    def run(self, context: JobContext, arguments: Mapping[str, Any]) -> Arguments:
        """Result: adapter, device, dtype, and `loads` with rows, prompt and new tokens, and for each of base,
        adapter and merged the seconds to the first token and for each further one.

        Waits until nothing trains, since that would be measured with it; raises InvalidConfig where a run
        has begun meanwhile.
        """
        from dataclasses import asdict

        from app.jobs.adapters import load_row
        from core.base_model.load import load_base
        from core.events import Progress
        from core.files.publish import scratch_folder
        from core.generate.latency import measure_latency
        from core.train.hardware import device_name

        row = referred(context.registry, Adapter, arguments["adapter"])
        _wait_for_the_device(context)
        newest = _newest_run(context)
        base = base_for(context.registry, row)
        source = source_of(context.registry, base)
        adapter = load_row(context.registry, row, base)
        context.report(Progress(f"Loading {base.name}"))
        resident = load_base(source.folder, name=base.name, template=source.template)
        with scratch_folder(context.settings.staging) as folder:
            merged = _merged(context, resident, adapter, source.template, folder)
            found = measure_latency(resident, adapter, merged, context.report)
        if _newest_run(context) != newest or context.registry.runs.active():
            raise InvalidConfig(
                "A run has begun meanwhile, so what was measured is not this adapter's time alone."
            )
        loads = [
            {**asdict(one.load), **{way: asdict(time) for way, time in one.ways.items()}} for one in found
        ]
        dtype = str(resident.dtype).removeprefix("torch.")
        return {"adapter": row.name, "device": device_name(resident.device), "dtype": dtype, "loads": loads}

    def next_steps(self, result: Mapping[str, Any]) -> Sequence[NextStep]:
        return (NextStep("Show it", "adapters", {"name": result["adapter"]}),)


KIND = MeasureLatency()


def _wait_for_the_device(context: JobContext) -> None:
    from core.events import Progress

    while active := context.registry.runs.active():
        context.report(Progress(f"Waiting for {active[0].name} to end"))
        time.sleep(_POLL_SECONDS)


def _newest_run(context: JobContext) -> int | None:
    return next((run.id for run in context.registry.all(Run, limit=1)), None)


def _merged(
    context: JobContext, base: ResidentBase, adapter: AdapterWeights, template: str, folder: Path
) -> ResidentBase:
    """Base and adapter as an export would merge them, loaded from the empty `folder`."""
    from core.base_model.load import load_base
    from core.base_model.skeleton import skeleton
    from core.export.companions import copy_companions
    from core.merge.merge import merge_into_base

    copy_companions(base.folder, folder)
    merge_into_base(base.folder, adapter, skeleton(base.folder).transposed, folder, context.report, {})
    return load_base(folder, name=base.name, template=template)
