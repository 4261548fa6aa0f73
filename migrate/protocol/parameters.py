"""What may be changed while a migration runs: names, units and meaning in one table.

Names are those of QEMU's `migrate-set-parameters` where it has the parameter. One meaning differs:
`avail-switchover-bandwidth` is an estimate there and a limit here (--switchover-bandwidth).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from migrate.config import SourceConfig, format_throttle, parse_throttle
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
    parse: Callable[[str], Any] | None = None
    """Where it is a text: what the field is of it; raises ValueError."""
    show: Callable[[Any], str] | None = None
    """And back."""

    @property
    def type(self) -> type[int] | type[str]:
        """Of its value."""
        return int if self.parse is None else str


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
    Parameter(
        "throttle",
        "throttle",
        "",
        "how much of its time the guest process loses in the rounds: `off`, `30%`, or `auto`: what it takes",
        parse_throttle,
        format_throttle,
    ),
    Parameter("cpu-throttle-initial", "cpu_throttle_initial", "%", "throttle `auto`: the first step"),
    Parameter("cpu-throttle-increment", "cpu_throttle_increment", "%", "throttle `auto`: the further steps"),
    Parameter("max-cpu-throttle", "max_cpu_throttle", "%", "throttle `auto`: where the steps end"),
)

_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def parameter_values(config: SourceConfig) -> dict[str, int | str]:
    """The parameters of a configuration, by name."""
    values: dict[str, int | str] = {}
    for parameter in PARAMETERS:
        value = getattr(config, parameter.field)
        values[parameter.name] = value if parameter.show is None else parameter.show(value)
    return values


def with_parameters(config: SourceConfig, values: Mapping[str, int | str]) -> SourceConfig:
    """The configuration with some parameters changed.

    Raises:
        UsageError: there is no such parameter, or its value cannot work.
    """
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name not in _BY_NAME:
            raise UsageError(f"there is no parameter {name!r}; there are {', '.join(_BY_NAME)}")
        parameter = _BY_NAME[name]
        try:
            fields[parameter.field] = value if parameter.parse is None else parameter.parse(str(value))
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from None
    return replace(config, **fields)
