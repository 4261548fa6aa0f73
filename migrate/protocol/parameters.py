"""What may be changed while a migration runs: names, units and meaning in one table.

Names are those of QEMU's `migrate-set-parameters` where it has the parameter. One meaning differs:
`avail-switchover-bandwidth` is an estimate there and a limit here (--switchover-bandwidth).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from migrate.config import SourceConfig
from migrate.errors import UsageError

CACHE_SIZE = "xbzrle-cache-size"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter."""

    name: str
    field: str
    """Of SourceConfig."""
    unit: str
    text: str


PARAMETERS = (
    Parameter("downtime-limit", "downtime_limit_ms", "ms", "how long the guest may stand still"),
    Parameter("max-bandwidth", "max_bandwidth", "bytes/s", "limit while the guest runs; 0: unlimited"),
    Parameter(
        "avail-switchover-bandwidth",
        "switchover_bandwidth",
        "bytes/s",
        "limit while the guest is paused; 0: unlimited",
    ),
    Parameter(
        CACHE_SIZE, "xbzrle_cache_size", "bytes", "page cache of each side, all lanes together; 0: no XBZRLE"
    ),
    Parameter("max-rounds", "max_rounds", "rounds", "rounds while the guest runs"),
)

_FIELDS = {parameter.name: parameter.field for parameter in PARAMETERS}


def parameter_values(config: SourceConfig) -> dict[str, int]:
    """The parameters of a configuration, by name."""
    return {parameter.name: getattr(config, parameter.field) for parameter in PARAMETERS}


def with_parameters(config: SourceConfig, values: Mapping[str, int]) -> SourceConfig:
    """The configuration with some parameters changed.

    Raises:
        UsageError: there is no such parameter, or its value cannot work.
    """
    for name in values:
        if name not in _FIELDS:
            raise UsageError(f"there is no parameter {name!r}; there are {', '.join(_FIELDS)}")
    fields: dict[str, int] = {_FIELDS[name]: value for name, value in values.items()}
    return replace(config, **fields)  # type: ignore[arg-type]  # the table names fields that are integers
