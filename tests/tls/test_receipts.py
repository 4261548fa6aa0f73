"""Receipts: written after a move, signed by key or token, and not to be changed by a single byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from certificates import Pki, write_token

from bench.lab import Lab
from migrate.cli.inspect import main
from migrate.daemon.receipt_signature import Signer, verify
from migrate.errors import MigrateError, UsageError, VerifyError
from migrate.protocol.receipt import Receipt, canonical, decode_file, encode_file

RECEIPT = Receipt(
    migration="0123456789abcdef" * 2,
    attempt=1,
    side="source",
    level="ram",
    root="ab" * 16,
    source_read_again=True,
    ram={"pc.ram": 1 << 24, "grüße": 4096},
    source_software="migrate 1",
    destination_software="migrate 2",
    completed_at=0,
    total_time_ms=1234,
)


@pytest.fixture
def receipt(pki: Pki) -> Receipt:
    """Of a move within the time of the certificates."""
    return replace(RECEIPT, completed_at=int(pki.client.not_valid_before_utc.timestamp()) + 60)


def signed(receipt: Receipt, tls_dir: Path | None = None, token: Path | None = None) -> bytes:
    line = receipt.encode()
    return encode_file(line, Signer(receipt.side, tls_dir, token).sign(line))


def check(data: bytes, tls_dir: Path | None = None, token: Path | None = None) -> str:
    found, line, signature = decode_file(data)
    return verify(found, line, signature, tls_dir, token)


def test_both_ends_write_one_and_both_say_the_same(lab: Lab, pki: Pki, tmp_path: Path) -> None:
    guest = lab.start_guest("--rate=100")
    ours, theirs = tmp_path / "source.receipt", tmp_path / "receipts"
    theirs.mkdir()
    destination = lab.start_destination("--once", f"--tls-dir={pki.good}", f"--receipt={theirs}")
    port = destination.wait_event("listening")["port"]
    source = lab.start_source(port, guest, f"--tls-dir={pki.good}", f"--receipt={ours}")
    assert source.wait() == 0, source.story()
    assert destination.wait() == 0, destination.story()
    lab.end_arrived_guest()
    [at_destination] = theirs.iterdir()
    here, there = decode_file(ours.read_bytes())[0], decode_file(at_destination.read_bytes())[0]
    assert at_destination.name == f"{there.migration}-destination.receipt"
    differing = {"side", "source_read_again", "completed_at", "total_time_ms"}
    same = [{k: v for k, v in asdict(one).items() if k not in differing} for one in (here, there)]
    assert same[0] == same[1]
    assert (here.side, there.side, here.level, here.source_read_again) == (
        "source",
        "destination",
        "ram",
        True,
    )
    assert here.root == source.wait_event("prepared")["root"]
    for file, name in ((ours, "CN=host-a"), (at_destination, "CN=destination")):
        assert check(file.read_bytes(), pki.ca_only) == name
        assert file.stat().st_mode & 0o077 == 0


def test_no_receipt_without_a_move(lab: Lab, pki: Pki, tmp_path: Path) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", "--on-prepare=false")
    path = tmp_path / "receipt"
    source = lab.start_source(destination.wait_event("listening")["port"], guest, f"--receipt={path}")
    assert source.wait() == 6
    assert not path.exists()


@pytest.mark.parametrize("by", ["key", "token"])
def test_every_changed_byte_is_found(receipt: Receipt, pki: Pki, by: str) -> None:
    tls_dir, token = (pki.good, None) if by == "key" else (None, pki.token)
    data = signed(receipt, tls_dir, token)
    assert check(data, tls_dir, token)
    step = 1 if by == "token" else 3
    for at in range(0, len(data), step):
        for bit in (0x01, 0x20):
            changed = data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
            with pytest.raises(MigrateError):
                check(changed, tls_dir, token)
    for other in (
        data[:-2] + b" }\n",
        data[:-1],
        data + b"\n",
        data.replace(b",", b", ", 1),
        b"",
        b"\n\n",
        b"[]\n{}\n",
    ):
        with pytest.raises(VerifyError):
            check(other, tls_dir, token)


def test_only_the_right_signer_is_believed(receipt: Receipt, pki: Pki, tmp_path: Path) -> None:
    by_key, by_token = signed(receipt, pki.good), signed(receipt, token=pki.token)
    other = pki.other_ca.write(tmp_path / "other")
    with pytest.raises(VerifyError, match="CA is not"):
        check(by_key, other)
    with pytest.raises(VerifyError, match="another token"):
        check(by_token, token=write_token(tmp_path / "token", "something else, as long"))
    with pytest.raises(UsageError, match="--tls-dir"):
        check(by_key, token=pki.token)
    with pytest.raises(UsageError, match="--token-file"):
        check(by_token, pki.good)
    with pytest.raises(VerifyError, match="not valid when"):
        check(signed(replace(receipt, completed_at=0), pki.good), pki.good)
    masked = shutil.copytree(pki.good, tmp_path / "masked")
    for kind in ("cert", "key"):
        shutil.copy(masked / f"client-{kind}.pem", masked / f"server-{kind}.pem")
    with pytest.raises(VerifyError, match="not one of a destination"):
        check(signed(replace(receipt, side="destination"), masked), pki.good)
    pki.ca.revoke(masked, pki.client)
    with pytest.raises(VerifyError, match="revoked"):
        check(by_key, masked)
    certificate = json.loads(by_key.split(b"\n")[1])
    line = replace(receipt, root="cd" * 16).encode()
    with pytest.raises(VerifyError, match="changed"):
        check(line + b"\n" + canonical(certificate) + b"\n", pki.good)


def test_the_command(receipt: Receipt, pki: Pki, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "receipt"
    file.write_bytes(signed(receipt, pki.good))
    command = ["verify-receipt", str(file)]
    assert main([*command, f"--tls-dir={pki.ca_only}"]) == 0
    out = capsys.readouterr().out
    assert "CN=host-a" in out and "level ram" in out and receipt.root in out
    assert main([*command, f"--tls-dir={pki.ca_only}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["receipt"]["root"] == receipt.root
    assert main(command) == 2
    file.write_bytes(signed(receipt))
    assert main(command) == 1
    assert "not signed" in capsys.readouterr().err
    assert main(["verify-receipt", str(tmp_path / "none")]) == 2
