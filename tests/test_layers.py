"""Imports only go down (README, How it is built)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "migrate"
BELOW = {
    "__init__": {"api", "daemon", "errors", "config"},
    "cli": {"cli", "api", "daemon", "protocol", "ram", "kernel", "guest", "errors", "config", "units"},
    "api": {"api", "daemon", "protocol", "errors", "config"},
    "daemon": {"daemon", "protocol", "ram", "kernel", "errors", "config", "units"},
    "protocol": {"protocol", "ram", "kernel", "errors", "config", "units"},
    "ram": {"ram", "kernel", "errors", "config"},
    "kernel": {"kernel", "errors"},
    "guest": {"guest", "ram", "errors", "config", "units"},
    "errors": set(),
    "config": {"errors"},
    "units": {"errors"},
}
ONLY_FOR = {"guest": {"cli/guest.py"}}
"""Layers that only these files outside may import."""
NO_SHELL = {"asyncio", "socket", "threading", "time", "subprocess", "signal", "selectors"}
"""What a sans-I/O machine must not know. The token bucket is shared between threads and has a lock."""
SANS_IO_EXCEPTIONS = {("bandwidth.py", "threading")}


def imported(path: Path) -> list[str]:
    """Dotted names of all modules that a file imports, also inside functions and type checks."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.append(node.module)
            if node.module == "migrate":
                names += [f"migrate.{alias.name}" for alias in node.names]
    return names


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_go_down(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "migrate" or len(parts) == 1 or parts[1].startswith("__"):
            continue
        assert parts[1] in BELOW[layer], f"{path.relative_to(ROOT)} imports {name}"
        allowed = ONLY_FOR.get(parts[1])
        if allowed is not None and layer != parts[1]:
            assert str(path.relative_to(ROOT)) in allowed


@pytest.mark.parametrize("path", sorted((ROOT / "protocol").glob("*.py")), ids=lambda path: path.name)
def test_the_protocol_does_no_io(path: Path) -> None:
    known = {name.split(".")[0] for name in imported(path)} & NO_SHELL
    assert not {name for name in known if (path.name, name) not in SANS_IO_EXCEPTIONS}


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 60
    assert "migrate.errors" in imported(ROOT / "protocol" / "batch.py")
