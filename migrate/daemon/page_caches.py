"""Memory for page caches of another size, beside those that are in use."""

from __future__ import annotations

from migrate import kernel
from migrate.protocol.actions import AllocateCaches
from migrate.protocol.lane_destination import COMMITTED_CACHE_BYTES


def available_memory() -> int | None:
    """Bytes this host can give to programs; None: the kernel does not say."""
    with open("/proc/meminfo") as meminfo:
        for line in meminfo:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def allocate_caches(
    keys: kernel.Keys, rule: str, wanted: AllocateCaches
) -> list[kernel.PageCache | None] | None:
    """One cache a lane with memory behind it, None each for 0 bytes; None if there is not so much memory.

    Blocks while the system clears pages: for a thread. A system that promises more than it has would end a
    process for it later, so the caches may have at most what is available now.
    """
    if wanted.share == 0:
        return [None] * wanted.lanes
    available = available_memory()
    if available is not None and wanted.share * wanted.lanes > available:
        return None
    try:
        caches = [kernel.PageCache(keys, wanted.share, rule) for _ in range(wanted.lanes)]
        for cache in caches:
            cache.commit(COMMITTED_CACHE_BYTES)
    except MemoryError:
        return None
    return list(caches)
