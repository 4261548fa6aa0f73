"""Pages that an old QEMU compressed one by one: captures with every whole page packed like that."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import pytest
from qemu_oracle import IllegalError, decode
from qemu_support import Receiver, stream, truth

from migrate.cli.inspect import main
from migrate.errors import StreamError

CAPTURES = ["xbzrle-small-cache-q7.2", "stopped-q10.0"]
DAMAGES = 8
P = 4096


def packed(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> bytes:
    """The capture with a COMPRESS_PAGE instead of each PAGE."""
    data = stream(name)
    path = tmp_path / "plain"
    path.write_bytes(data)
    assert main(["--pages", "--json", str(path)]) == 0
    made, done = bytearray(), 0
    for line in capsys.readouterr().out.splitlines()[:-1]:
        record = json.loads(line)["record"]
        if record["type"] != "page":
            continue
        at = record["at"]
        word = int.from_bytes(data[at : at + 8], "big")
        begin = at + 8 + (0 if word & 0x20 else 1 + data[at + 8])
        content = zlib.compress(data[begin : begin + P], 1)
        made += data[done:at] + (word ^ 0x108).to_bytes(8, "big") + data[at + 8 : begin]
        made += len(content).to_bytes(4, "big") + content
        done = begin + P
    return bytes(made + data[done:])


@pytest.fixture(params=CAPTURES)
def made(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[str, bytes]:
    return request.param, packed(request.param, tmp_path, capsys)


def test_they_land_in_their_places(made: tuple[str, bytes], rng: random.Random) -> None:
    name, data = made
    for pieces in ((), sorted(rng.sample(range(len(data)), 100))):
        with Receiver() as receiver:
            assert receiver.take(data, pieces) == truth(name)
            assert receiver.ram is not None
            assert receiver.ram.totals["compressed"] > 200 and receiver.ram.totals["normal"] == 0


def test_damaged_ones_are_read_as_an_independent_decoder_does(
    made: tuple[str, bytes], rng: random.Random
) -> None:
    _, data = made
    assert decode(data)[0] == truth(made[0])
    for _ in range(DAMAGES):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            expected: object = decode(bytes(damaged))[0]
        except IllegalError:
            expected = None
        with Receiver() as receiver:
            try:
                found: object = receiver.take(bytes(damaged))
            except StreamError:
                found = None
        assert found == expected


def test_what_unpacks_to_another_length_is_refused_at_its_record(
    made: tuple[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, data = made
    path = tmp_path / "packed"
    path.write_bytes(data)
    assert main(["--pages", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    records = [json.loads(line)["record"] for line in lines[:-1]]
    packs = [record["at"] for record in records if record["type"] == "compressed"]
    assert json.loads(lines[-1])["summary"]["totals"]["compressed"] == len(packs)
    at = packs[len(packs) // 2]
    begin = at + 8 + (0 if data[at + 7] & 0x20 else 1 + data[at + 8])
    end = begin + 4 + int.from_bytes(data[begin : begin + 4], "big")
    for content in (zlib.compress(bytes(P - 1)), zlib.compress(bytes(P + 1)), zlib.compress(bytes(1 << 20))):
        path.write_bytes(data[:begin] + len(content).to_bytes(4, "big") + content + data[end:])
        assert main([str(path)]) == 1
        assert f"rule compress-data, at byte {at:#x}" in capsys.readouterr().err
