"""The daemons: asyncio, sockets, lane threads, signals, guest control, hooks."""
