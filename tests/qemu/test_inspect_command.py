"""`migrate-inspect` as a person calls it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from qemu_oracle import apply_delta
from qemu_support import MULTIFD, POSTCOPY, STREAMS, channels, meta, stream, truth

from migrate import kernel
from migrate.cli.inspect import main
from migrate.cli.inspect_output import SHOWN_ROWS
from migrate.protocol.batch import BatchHeader, Kind, encode_marker
from migrate.protocol.record_listing import delta_runs
from migrate.protocol.records import encode_block_list


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "stream"
    path.write_bytes(stream("pc-xbzrle-q10.0"))
    return path


def summary(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.splitlines()[-1])["summary"]
    return found


def test_a_clean_stream_and_its_statistics(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", str(recorded)]) == 0
    found = summary(capsys.readouterr().out)
    expected = meta("pc-xbzrle-q10.0")
    assert found["error"] is None
    assert found["machine"] == "pc-i440fx-7.2"
    assert found["commands"] == ["OPEN_RETURN_PATH", "PING"]
    assert {block["name"]: block["length"] for block in found["blocks"]} == {
        name: block["bytes"] for name, block in expected["blocks"].items()
    }
    assert found["totals"]["xbzrle"] == expected["records"]["xbzrle"]
    assert found["sections"] == {"start": 1, "part": expected["records"]["part"], "end": 1}
    assert {"timer", "cpu", "i8254"} <= set(found["devices"])


def test_the_summary_for_people(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recorded)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["sections", "1", "start,", "11", "part,", "1", "end"] in lines
    assert ["mem", "16", "MiB", "3848", "20", "545", "414", "7849", "33759"] in lines


def test_a_long_table_is_folded_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stream"
    path.write_bytes(stream("one-block-q7.2"))
    assert main([str(path), "--json"]) == 0
    rounds = len(summary(capsys.readouterr().out)["rounds"])
    assert rounds > 100
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    fold = lines.index(f"… {rounds - 2 * SHOWN_ROWS} more; --json has them all")
    assert [line.split()[0] for line in lines[fold - SHOWN_ROWS : fold]] == [
        str(n) for n in range(1, SHOWN_ROWS + 1)
    ]
    last = [str(number) for number in range(rounds - SHOWN_ROWS + 1, rounds + 1)]
    assert [line.split()[0] for line in lines[fold + 1 :]] == last


def test_pages_are_listed_with_their_runs(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--pages", "--json", str(recorded)]) == 0
    records = [json.loads(line)["record"] for line in capsys.readouterr().out.splitlines()[:-1]]
    counted = meta("pc-xbzrle-q10.0")["records"]
    assert len(records) == counted["named"] + counted["continue"]
    data = stream("pc-xbzrle-q10.0")
    for record in records:
        word = int.from_bytes(data[record["at"] : record["at"] + 8], "big")
        assert word & ~0xFFF == record["offset"]
        assert {0x02: "zero", 0x08: "page", 0x40: "xbzrle"}[word & 0xFDF] == record["type"]
    assert sum(len(record["runs"]) for record in records) == counted["xbzrle_runs"]


def test_the_runs_of_a_delta_are_the_bytes_it_changes() -> None:
    delta = bytes.fromhex("a302015ddb1d01a2")
    assert delta_runs(delta) == ((0x123, 1), (0xFFF, 1))
    page = apply_delta(delta, bytes(4096))
    assert [at for at, value in enumerate(page) if value] == [0x123, 0xFFF]


def test_an_illegal_stream_is_told_with_rule_and_offset(
    recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(recorded.read_bytes())
    assert main(["--pages", "--json", str(recorded)]) == 0
    records = [json.loads(line)["record"] for line in capsys.readouterr().out.splitlines()[:-1]]
    at = records[100]["at"]
    data[at + 7] |= 0x80  # HOOK beside what it is
    recorded.write_bytes(data)
    assert main([str(recorded)]) == 1
    shown = capsys.readouterr()
    assert f"rule unknown-flags, at byte {at:#x} of the stream" in shown.err
    assert main(["--json", str(recorded)]) == 1
    fault = summary(capsys.readouterr().out)["error"]
    assert (fault["rule"], fault["offset"]) == ("unknown-flags", at)


def test_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    multifd = tmp_path / "extra"
    multifd.write_bytes(b"\x11\x22\x33\x44" + bytes(60))
    assert main([str(multifd)]) == 2
    assert "multifd" in capsys.readouterr().err
    assert main([str(tmp_path / "missing")]) == 2
    assert "missing cannot be opened" in capsys.readouterr().err
    assert main(["--frobnicate"]) == 2
    assert main(["--page-size", "5", str(multifd)]) == 2


def test_what_is_no_stream_is_illegal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "noise"
    path.write_bytes(b"GIF89a")
    assert main([str(path)]) == 1
    assert "rule magic" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pc-xbzrle-q7.2", *POSTCOPY])
def test_extract_gives_the_blocks_and_the_device_state(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Standard:
        buffer = io.BytesIO(stream(name))

    monkeypatch.setattr("sys.stdin", Standard)
    other = tmp_path / "elsewhere"
    assert main(["extract", "-", str(tmp_path / "out"), "--ram", f"mem={other}"]) == 0
    out = tmp_path / "out"
    expected = truth(name)
    assert other.read_bytes() == expected["mem"]
    assert (out / "pc.bios.ram").read_bytes() == expected["pc.bios"]
    state = (out / "device-state.bin").read_bytes()
    assert state in stream(name)
    assert (out / "vmstate.json").exists() == (name not in POSTCOPY)
    migration = json.loads((out / "migration.json").read_text())
    digests = {block["name"]: block["sha256"] for block in migration["blocks"]}
    assert digests == {block: facts["sha256"] for block, facts in meta(name)["blocks"].items()}
    assert not list(tmp_path.rglob("*.migrating"))
    assert str(other) in capsys.readouterr().out


def test_a_stream_that_breaks_off_leaves_marked_files(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.write_bytes(recorded.read_bytes()[:100_000])
    assert main(["extract", str(recorded), str(tmp_path / "out")]) == 1
    assert "rule truncated" in capsys.readouterr().err
    assert (tmp_path / "out" / "mem.ram.migrating").exists()
    assert not (tmp_path / "out" / "migration.json").exists()


@pytest.mark.parametrize(
    ("name", "rule"),
    [("multifd-q10.0", "multifd"), ("multifd-q7.2", "pages-missing"), ("multifd-pc-q10.0", "pages-missing")],
)
def test_the_main_channel_of_multifd_is_not_taken_for_all_of_ram(
    name: str, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stream"
    path.write_bytes(stream(name))
    assert main(["extract", str(path), str(tmp_path / "out")]) == 1
    assert f"rule {rule}," in capsys.readouterr().err
    assert (tmp_path / "out" / "mem.ram.migrating").exists()


@pytest.mark.parametrize("name", MULTIFD)
def test_extract_with_the_page_channels_of_multifd(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stream"
    path.write_bytes(stream(name))
    arguments = ["extract", str(path), str(tmp_path / "out")]
    for number, data in enumerate(channels(name)):
        recorded = tmp_path / f"extra-{number}"
        recorded.write_bytes(data)
        arguments += ["--channel", str(recorded)]
    assert main(arguments) == 0, capsys.readouterr().err
    for block, expected in truth(name).items():
        assert (tmp_path / "out" / f"{block}.ram").read_bytes() == expected, block
    totals = json.loads((tmp_path / "out" / "migration.json").read_text())["totals"]
    counted = meta(name)["records"]
    assert totals["normal"] == counted["mf_page"]
    assert totals["zero"] + totals["zero_again"] == sum(
        counted.get(kind, 0) for kind in ("zero", "zero_again", "mf_zero")
    )

    recorded.write_bytes(data[: len(data) // 2])
    (tmp_path / "out" / "migration.json").unlink()
    assert main(arguments) == 1
    assert "rule truncated" in capsys.readouterr().err


def test_ignored_blocks_are_no_missing_pages(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(stream("ignore-shared-q10.0"))
    assert main(["extract", str(path), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "pc.bios.ram").read_bytes() == truth("ignore-shared-q10.0")["pc.bios"]


def test_rounds_begin_where_the_scan_goes_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stream"
    path.write_bytes(stream("rounds-q10.0"))
    assert main(["--json", str(path)]) == 0
    found = summary(capsys.readouterr().out)
    rounds = found["rounds"]
    # A sync that finds nothing new is not in the stream, nor a round that begins behind the end of the last.
    assert 3 <= len(rounds) <= meta("rounds-q10.0")["query_migrate"]["ram"]["dirty-sync-count"]
    assert [row["round"] for row in rounds] == list(range(1, len(rounds) + 1))
    pages = sum(block["length"] for block in found["blocks"]) // 4096
    assert rounds[0]["zero"] + rounds[0]["normal"] == pages
    for name, total in found["totals"].items():
        assert sum(row[name] for row in rounds) == total
    assert {block["never_sent"] for block in found["blocks"]} == {0}


def test_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left, right = tmp_path / "a", tmp_path / "b"
    left.write_bytes(bytes(3 << 20))
    image = bytearray(3 << 20)
    right.write_bytes(image)
    assert main(["diff", str(left), str(right)]) == 0
    image[(1 << 20) - 1] = image[1 << 20] = image[2 << 20] = 1
    right.write_bytes(image)
    assert main(["diff", str(left), str(right)]) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "0xff000  2 pages",
        "0x200000  1 pages",
        "3 pages differ",
    ]
    right.write_bytes(image[:-4096])
    assert main(["diff", "--json", str(left), str(right)]) == 1
    assert json.loads(capsys.readouterr().out)["differing_pages"] == 4


def batch(kind: Kind, sequence: int, body: bytes, round_: int = 1, records: int = 0) -> bytes:
    crc = kernel.crc32c(body)
    header = BatchHeader(kind, 1, 0, 1, sequence, round_, records, len(body), len(body), 0, crc)
    return header.encode() + body


def lane() -> list[bytes]:
    page = (0x08).to_bytes(8, "big") + b"\x06pc.ram" + b"\1" * 4096
    delta = (0x1060).to_bytes(8, "big") + b"\1\0\3\0\1\7"
    return [
        batch(Kind.RESET, 1, encode_block_list([("pc.ram", 1 << 20)], 4096)),
        batch(Kind.RECORDS, 2, page, records=1),
        batch(Kind.ROUND_END, 3, encode_marker(0, 0)),
        batch(Kind.RECORDS, 4, page + delta, 2, records=2),
        batch(Kind.FINAL, 5, encode_marker(0, 0), 2),
    ]


def test_a_recorded_lane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lane"
    path.write_bytes(b"".join(lane()))
    assert main(["--json", str(path)]) == 0
    found = summary(capsys.readouterr().out)
    assert found["batches"] == {"reset": 1, "records": 2, "round_end": 1, "final": 1}
    rounds = {row["round"]: (row.get("normal", 0), row.get("xbzrle", 0)) for row in found["rounds"]}
    assert rounds == {1: (1, 0), 2: (1, 1)}
    assert found["totals"]["xbzrle_bytes"] == 3


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (lambda parts: [parts[0], parts[2]], "sequence"),
        (lambda parts: parts[1:], "epoch"),
        (lambda parts: [parts[0], parts[1][:-1] + b"\2"], "batch"),
        (lambda parts: [*parts[:1], parts[1][:50]], "truncated"),
        (lambda parts: [parts[0], batch(Kind.RECORDS, 2, parts[1][64:], records=2)], "record-count"),
        (lambda parts: [parts[0], batch(Kind.RECORDS, 2, parts[1][64:-1], records=1)], "truncated"),
    ],
)
def test_an_illegal_lane(broken: Any, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lane"
    path.write_bytes(b"".join(broken(lane())))
    assert main(["--json", str(path)]) == 1
    assert summary(capsys.readouterr().out)["error"]["rule"] == rule


def test_every_capture_is_legal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(path.name for path in STREAMS.iterdir() if path.is_dir())
    assert len(names) == 27
    for name in names:
        path = tmp_path / "stream"
        path.write_bytes(stream(name))
        assert main([str(path)]) == 0, name
    capsys.readouterr()


def test_diff_of_two_streams_is_that_of_what_they_lead_to(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--pages", "--json", str(recorded)]) == 0
    lines = capsys.readouterr().out.splitlines()[:-1]
    records = [json.loads(line)["record"] for line in lines]
    last = {(record["block"], record["offset"]): record for record in records}
    page = next(record for record in last.values() if record["type"] == "page" and record["block"] == "mem")
    data = bytearray(recorded.read_bytes())
    data[page["at"] + 500] ^= 1
    other = tmp_path / "other"
    other.write_bytes(data)
    assert main(["diff", str(recorded), str(recorded)]) == 0
    assert capsys.readouterr().out == "equal\n"
    assert main(["diff", str(recorded), str(other)]) == 1
    assert capsys.readouterr().out.splitlines() == [f"mem  {page['offset']:#x}  1 pages", "1 pages differ"]
    data[page["at"] + 500] ^= 1
    data[data.index(b"timer") + 40] ^= 1
    other.write_bytes(data)
    assert main(["diff", "--json", str(recorded), str(other)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["equal"] and not found["device_state_equal"]
    assert [row["differing_pages"] for row in found["blocks"].values()] == [0] * len(found["blocks"])
    other.write_bytes(stream("one-block-q7.2"))
    assert main(["diff", "--json", str(recorded), str(other)]) == 1
    assert "pc.bios" in json.loads(capsys.readouterr().out)["only_in_one"]
    other.write_bytes(bytes(4096))
    assert main(["diff", str(recorded), str(other)]) == 2
