"""Files with QEMU's capability mapped-ram: made from captures, and by a QEMU that has it."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
from live_qemu import Qemu
from qemu_support import Receiver, stream, truth

from migrate.cli.inspect import main
from migrate.errors import StreamError
from migrate.protocol.mapped_ram import check_bitmap

P = 4096
MIB = 1 << 20
CAPTURE = "stopped-q10.0"
RAM_ID = b"\0\0\0\1"
EOS = (0x10).to_bytes(8, "big")


class Made:
    """A file as the reference says (section 9), with what a test needs to damage it."""

    def __init__(self, rng: random.Random, *, record: bytes = b"") -> None:
        data, blocks = stream(CAPTURE), truth(CAPTURE)
        state = data[data.index(b"\4\0\0\0", data.rindex(EOS + b"\x7e" + RAM_ID)) :]
        machine = data[13 : 13 + int.from_bytes(data[9:13], "big")]
        made = bytearray(b"QEVM\0\0\0\3\7" + len(machine).to_bytes(4, "big") + machine)
        made += b"\5\x1aconfiguration/capabilities" + struct.pack(">II", 1, 1) + b"\nmapped-ram"
        total = sum(map(len, blocks.values()))
        made += b"\1" + RAM_ID + b"\3ram\0\0\0\0\0\0\0\4" + (total | 4).to_bytes(8, "big")
        self.headers: list[int] = []
        for name, content in blocks.items():
            made += bytes([len(name)]) + name.encode() + len(content).to_bytes(8, "big")
            self.headers.append(len(made))
            made += self._block(content, len(made), rng)
        made += EOS + b"\x7e" + RAM_ID + b"\2" + RAM_ID + record + EOS + b"\x7e" + RAM_ID
        made += b"\3" + RAM_ID + EOS + b"\x7e" + RAM_ID + state
        self.data = bytes(made)

    @staticmethod
    def _block(content: bytes, at: int, rng: random.Random) -> bytes:
        pages = [content[start : start + P] for start in range(0, len(content), P)]
        bitmap = bytearray((len(pages) + 63) // 64 * 8)
        for number, page in enumerate(pages):
            if any(page):
                bitmap[number // 8] |= 1 << number % 8
            elif rng.random() < 0.1:
                pages[number] = rng.randbytes(P)  # became zero later: what lies there is stale
        begin = at + 28
        pages_at = -(-(begin + len(bitmap)) // MIB) * MIB
        head = struct.pack(">IQQQ", 1, P, begin, pages_at) + bitmap
        return head + bytes(pages_at - begin - len(bitmap)) + b"".join(pages)


@pytest.fixture
def made(rng: random.Random) -> Made:
    return Made(rng)


def test_extract_reads_every_page_that_is_there(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "file", tmp_path / "out"
    path.write_bytes(made.data)
    assert main(["extract", str(path), str(output)]) == 0
    for name, content in truth(CAPTURE).items():
        assert (output / f"{name}.ram").read_bytes() == content
    assert stream(CAPTURE).endswith((output / "device-state.bin").read_bytes())
    capsys.readouterr()
    assert main(["--json", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)["summary"]
    for block in found["blocks"]:
        content = truth(CAPTURE)[block["name"]]
        assert block["normal"] == sum(any(content[at : at + P]) for at in range(0, len(content), P))
        assert block["never_sent"] == 0


def test_it_is_no_stream_for_a_running_destination(made: Made) -> None:
    with Receiver() as receiver, pytest.raises(StreamError) as caught:
        receiver.take(made.data)
    assert caught.value.rule == "mapped-ram" and "migrate-inspect extract" in caught.value.message


def test_what_is_wrong_is_named(made: Made, rng: random.Random, tmp_path: Path) -> None:
    at = made.headers[1]
    damages = {
        "version": (at, struct.pack(">I", 2)),
        "page size": (at + 4, struct.pack(">Q", 2 * P)),
        "bitmap elsewhere": (at + 12, struct.pack(">Q", at)),
        "pages between pages": (at + 20, struct.pack(">Q", 18 * MIB + 1)),
        "pages before the bitmap": (at + 20, struct.pack(">Q", 0)),
    }
    for what, (place, value) in damages.items():
        data = made.data[:place] + value + made.data[place + len(value) :]
        with Receiver(recorded=True, apply=False) as receiver, pytest.raises(StreamError) as caught:
            receiver.take(data)
        assert (caught.value.rule, caught.value.offset) == ("mapped-ram", at), what
    record = (0x2A).to_bytes(8, "big") + bytes(P)
    with Receiver(recorded=True, apply=False) as receiver, pytest.raises(StreamError) as caught:
        receiver.take(Made(rng, record=record).data)
    assert "pages are mapped" in caught.value.message
    path = tmp_path / "cut"
    path.write_bytes(made.data[: made.headers[1] + 100])
    assert main(["extract", str(path), str(tmp_path / "out")]) == 1


def test_a_bitmap_beyond_its_block_is_refused(rng: random.Random) -> None:
    bitmap = bytearray(16)
    bitmap[8] = 0b111
    check_bitmap(bitmap, 0, 67)
    with pytest.raises(StreamError):
        check_bitmap(bitmap, 0, 66)


def test_a_file_of_a_qemu_that_has_it(qemu: Qemu, tmp_path: Path) -> None:
    known = {capability["capability"] for capability in qemu.do("query-migrate-capabilities")}
    if "mapped-ram" not in known:
        assert "compress" in known, "every QEMU since 9.0 has it"
        return
    qemu.do("stop")
    qemu.capabilities("mapped-ram")
    path = tmp_path / "file"
    qemu.do("migrate", uri=f"file:{path}")
    assert qemu.wait_migrated()["status"] == "completed"
    assert main(["extract", str(path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/mem.ram").read_bytes() == qemu.ram_file.read_bytes()
    qemu.goes_on()
