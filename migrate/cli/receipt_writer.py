"""`--receipt PATH`: a reporter that tells another one, and writes the receipt of a completed move."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from migrate.cli.report_writer import replace_file
from migrate.config import DestinationConfig, SourceConfig
from migrate.daemon.receipt_signature import Signer
from migrate.daemon.reporter import Reporter
from migrate.protocol.receipt import canonical, encode_file

if TYPE_CHECKING:
    from migrate.errors import MigrateError
    from migrate.protocol.stats import MigrationStats


class ReceiptWriter:
    """Signs and writes what the event `proved` brings.

    Args:
        path: of the receipt; a directory gets one for each migration, ID-SIDE.receipt.
    """

    def __init__(self, reporter: Reporter, path: Path, signer: Signer) -> None:
        self._reporter = reporter
        self._path = path
        self._signer = signer

    def event(self, name: str, /, **fields: object) -> None:
        self._reporter.event(name, **fields)
        receipt = fields.get("receipt")
        if name == "proved" and isinstance(receipt, dict):
            self._write(receipt)

    def progress(self, stats: MigrationStats, now: float) -> None:
        self._reporter.progress(stats, now)

    def summary(self, stats: MigrationStats, now: float, outcome: str, /, **fields: object) -> None:
        self._reporter.summary(stats, now, outcome, **fields)

    def error(self, error: MigrateError) -> None:
        self._reporter.error(error)

    def _write(self, receipt: dict[str, object]) -> None:
        path = self._path
        if path.is_dir():
            path = path / f"{receipt['migration']}-{receipt['side']}.receipt"
        line = canonical(receipt)
        try:
            replace_file(path, encode_file(line, self._signer.sign(line)))
        except OSError as error:  # the move is done, and stays so
            problem = error.strerror or str(error)
            self._reporter.event("warning", message=f"the receipt {path} cannot be written: {problem}")


def with_receipt(reporter: Reporter, side: str, config: SourceConfig | DestinationConfig) -> Reporter:
    """The reporter itself, or one that writes the receipt as well. Raises UsageError: it cannot be signed."""
    if config.receipt is None:
        return reporter
    return ReceiptWriter(reporter, config.receipt, Signer(side, config.tls_dir, config.token_file))
