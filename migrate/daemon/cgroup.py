"""The cgroup (version 2) of a process: whether it is the process's own, and where it is."""

from __future__ import annotations

import os
from pathlib import Path


def own_cgroup(pid: int, proc: Path = Path("/proc")) -> Path | None:
    """The directory of the cgroup that holds this process and no other, with a cpu.max that we may write.

    None where there is none: then what is limited there would not be the guest alone, or not be limited.
    """
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
        inside = next(line[3:] for line in lines if line.startswith("0::"))
        directory = _mount_point(proc) / inside.lstrip("/")
        alone = (directory / "cgroup.procs").read_text().split() == [str(pid)]
    except (OSError, StopIteration):  # also EOPNOTSUPP: a threaded cgroup has no list of processes
        return None
    return directory if alone and os.access(directory / "cpu.max", os.W_OK) else None


def _mount_point(proc: Path) -> Path:
    """Where cgroup2 is mounted, by mountinfo, proc(5). Raises StopIteration: nowhere."""
    for line in (proc / "self" / "mountinfo").read_text().splitlines():
        mounted, _, system = line.partition(" - ")
        if system.split()[0] == "cgroup2":
            return Path(mounted.split()[4])
    raise StopIteration
