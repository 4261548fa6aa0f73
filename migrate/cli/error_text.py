"""An error in words: what failed, at which side, where the guest runs, what to type next."""

from __future__ import annotations

from migrate.cli.exit_codes import exit_code_name
from migrate.cli.plain_text import guest_text, printable
from migrate.errors import MigrateError


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.strip().splitlines())


def error_lines(program: str, error: MigrateError) -> list[tuple[str, str]]:
    """The error block as (label, text): what failed, on which side, where the guest runs, what to do next.

    The label of the first line is the program with `error` or `cancelled`. A text may have several lines,
    such as what a hook wrote.
    """
    verdict = "cancelled" if error.exit_code == 130 else "error"
    message = _printable_lines(error.message or type(error).__name__)
    message = message.replace("cancelled: cancelled", "cancelled", 1)  # what the peer gave as its reason
    title = program if message.startswith("cancelled") else f"{program}: {verdict}"  # not twice
    lines = [(title, message)]
    if error.side:
        lines.append((f"{'failed' if verdict == 'error' else verdict} at", f"the {printable(error.side)}"))
    if error.guest:
        lines.append(("guest", guest_text(error.guest)))
    if error.hint:
        lines.append(("next", _printable_lines(error.hint)))
    lines.append(("exit code", f"{error.exit_code} ({exit_code_name(error.exit_code)})"))
    return lines


def error_block(program: str, error: MigrateError) -> str:
    """`error_lines` as plain lines, each ended; what belongs to the first is indented."""
    (title, message), *rest = error_lines(program, error)
    lines = [f"{title}: {message}"] + [f"  {label}: {text}" for label, text in rest]
    return "".join(line.replace("\n", "\n    ") + "\n" for line in lines)
