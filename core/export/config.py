"""How an adapter leaves the house: the format, and the options of all formats in one flat list."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from core.errors import InvalidConfig
from core.export.formats import AUTO, EXPORT_FORMATS, ExportFormat
from core.options import Config, Option, option, unknown_option


def _dtypes() -> tuple[str, ...]:
    """Every number format that some export format can hold."""
    formats = EXPORT_FORMATS.all().values()
    return tuple(dict.fromkeys(dtype for one in formats for dtype in one.dtypes))


@dataclass(frozen=True)
class ExportConfig(Config):
    """What all formats have in common."""

    format: str = option(
        "safetensors",
        "Format",
        EXPORT_FORMATS.help,
        choices=lambda: EXPORT_FORMATS.names,
    )
    dtype: str = option(
        AUTO,
        "Weights as",
        "auto: as the base's, in GGUF float16. float32 loses nothing of the adapter; 16 bits round "
        "small changes away, and "
        "the report says how much. The q kinds are for GGUF.",
        choices=_dtypes,
    )

    @property
    def kind(self) -> ExportFormat:
        """The format's head."""
        return EXPORT_FORMATS.get(self.format)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kind.require_dtype(self.dtype)


def export_options() -> list[Option]:
    """All options of an export: those in common, then those of single formats."""
    own = [one for kind in EXPORT_FORMATS.all().values() for one in kind.options.options()]
    return list({one.name: one for one in (*ExportConfig.options(), *own)}.values())


def require_own_options(format: str, names: Collection[str]) -> None:
    """Raise InvalidConfig for options that only other formats have, which would count nothing."""
    kinds = EXPORT_FORMATS.all()
    shared = [one.name for one in ExportConfig.options()]
    own = {name: [one.name for one in kind.options.options()] for name, kind in kinds.items()}
    for name in names:
        takers = [kind for kind, options in own.items() if name in options]
        if takers and format in kinds and format not in takers:
            raise InvalidConfig(
                f"{name} is an option of {', '.join(takers)}, not of {format}, which has "
                f"{', '.join([*shared, *own[format]])}."
            )


def split_export_options(values: Mapping[str, object]) -> tuple[ExportConfig, Config]:
    """Sort one flat mapping into what all formats share and the chosen format's own.

    A form sends the options of the other formats too: they are checked and left out. Raises InvalidConfig.
    """
    known = {one.name: one for one in export_options()}
    for name in values:
        if name not in known:
            raise InvalidConfig(unknown_option(name, list(known)))
    shared = {one.name for one in ExportConfig.options()}
    config = ExportConfig.parse({name: value for name, value in values.items() if name in shared})
    own = {one.name for one in config.kind.options.options()}
    for name in values.keys() - shared - own:
        known[name].parse(values[name])
    chosen = config.kind.options.parse({name: values[name] for name in values if name in own})
    return replace(config, dtype=config.kind.dtype_for(config.dtype, chosen)), chosen
