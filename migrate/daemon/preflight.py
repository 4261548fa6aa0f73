"""What `migrate-src --check` shows once both sides have said everything they know."""

from __future__ import annotations

from migrate.config import SourceConfig
from migrate.protocol import messages as m
from migrate.units import format_size


def check_items(
    config: SourceConfig, hello: m.Hello, accept: m.Accept, tracker: str, guest: str, connection: str
) -> list[dict[str, str]]:
    """Rows of what, value and verdict ("ok", or "note" where the peer gave less than was asked for).

    Args:
        tracker: the dirty tracker that was chosen.
        guest: how the guest is paused.
        connection: whether it is secured, and how.
    """

    def row(what: str, value: str, verdict: str = "ok") -> dict[str, str]:
        return {"what": what, "value": value, "verdict": verdict}

    rows = [row(f"RAM block {block.name}", format_size(block.length)) for block in hello.blocks]
    rows.append(row("RAM in use", format_size(hello.data_bytes)))
    rows.append(row("room at the destination", f"for {format_size(accept.free_bytes)} of RAM"))
    rows.append(row("protocol", f"version {accept.version}, peer {accept.software}"))
    rows.append(row("connection", connection))
    cache = (
        "no XBZRLE" if not accept.cache_bytes else f"{format_size(accept.cache_bytes)}, {accept.cache_rule}"
    )
    asked = (
        ""
        if accept.cache_bytes == config.xbzrle_cache_size
        else (f" (asked for {format_size(config.xbzrle_cache_size)})")
    )
    rows.append(row("page cache", cache + asked, "note" if asked else "ok"))
    rows.append(row("lanes", str(accept.lanes), "ok" if accept.lanes == config.lanes else "note"))
    rows.append(row("proof", accept.verify))
    chosen = " (chosen by auto)" if config.dirty_tracker == "auto" else ""
    rows.append(row("dirty tracker", tracker + chosen))
    rows.append(row("guest", guest))
    rows += [row("QEMU", f"{qemu.machine}, {qemu.accelerator}, on both sides") for qemu in hello.qemu]
    return rows
