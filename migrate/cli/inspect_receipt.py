"""`migrate-inspect verify-receipt`: whether a receipt is whole, and who signed it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from migrate.cli.arguments import ArgumentParser
from migrate.cli.inspect_files import CLEAN
from migrate.cli.plain_text import printable
from migrate.errors import UsageError
from migrate.protocol.receipt import MOST_BYTES, decode_file
from migrate.units import format_size


def add_options(parser: ArgumentParser) -> None:
    """Of the subcommand."""
    parser.add_argument("file", type=Path, metavar="FILE", help="what --receipt wrote")
    parser.add_argument(
        "--tls-dir", type=Path, metavar="DIR", help="ca-cert.pem, and ca-crl.pem: whose certificates count"
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="for a receipt that the token signed")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> int:
    """Check and show. Raises UsageError, VerifyError."""
    from migrate.daemon.receipt_signature import verify

    try:
        with options.file.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{options.file} cannot be read: {error.strerror}") from error
    receipt, text, signature = decode_file(data)
    signer = verify(receipt, text, signature, options.tls_dir, options.token_file)
    if options.json:
        print(json.dumps({"signer": signer, "receipt": asdict(receipt)}))
        return CLEAN
    print(f"signed by {printable(signer)}, at the {printable(receipt.side)}")
    again = "; the source read its RAM again after the handover" if receipt.source_read_again else ""
    print(f"migration {printable(receipt.migration)}: level {printable(receipt.level)}{again}")
    for name, length in receipt.ram.items():
        print(f"RAM block {printable(name)}: {format_size(length)}")
    print(f"root {printable(receipt.root)}")
    return CLEAN
