"""Standard output that never blocks and never raises, on real pipes."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator

import pytest

from migrate.cli.output import Output


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Read end and write end; closed afterwards if they are open still."""
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            continue


def read_all(fd: int) -> bytes:
    data = b""
    while piece := os.read(fd, 1 << 20):
        data += piece
    return data


def test_text_comes_out_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = Output(writer)
    for line in range(100):
        assert output.write(f"line {line}\n") == len(f"line {line}\n")
    output.close()
    os.close(writer)
    assert read_all(reader) == b"".join(b"line %d\n" % line for line in range(100))


@pytest.mark.parametrize("blocking", [True, False])
def test_a_reader_that_does_not_read_blocks_nobody(pipe: tuple[int, int], blocking: bool) -> None:
    reader, writer = pipe
    os.set_blocking(writer, blocking)
    output = Output(writer)
    text = "x" * 1000 + "\n"
    for _ in range(1000):  # far more than a pipe holds
        output.write(text)
    assert not output.drain(timeout=0)
    assert output.backlog >= 1_001_000 - fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    output.close(timeout=0)  # gives up waiting; the thread goes on alone
    output.write("after the end\n")
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(read_all(reader)), daemon=True)
    thread.start()
    assert output.drain(timeout=60)
    output.close()
    os.close(writer)
    thread.join()
    assert received == [text.encode() * 1000]


def test_beyond_the_backlog_text_is_dropped_and_the_gap_told(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    held = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    os.write(writer, b"-" * held)  # full: the thread gets stuck with its first piece
    output = Output(writer, backlog_limit=10, notice=lambda dropped: f"<{dropped} lost>")
    for text in ("aaaa", "bbbb", "cccc", "dddd"):
        output.write(text)
    assert output.backlog == 8
    assert os.read(reader, held) == b"-" * held
    assert output.drain(timeout=60)
    output.write("e")
    output.close()
    os.close(writer)
    assert read_all(reader) == b"aaaabbbb<8 lost>e"


def test_a_closed_pipe_is_the_end_of_the_output_not_of_the_program(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = Output(writer)
    os.close(reader)
    output.write("nobody hears it\n")
    assert output.drain(timeout=60)
    assert isinstance(output.broken, BrokenPipeError)
    output.write("nor this\n")
    assert output.backlog == 0
    output.close()


def test_a_full_disk_is_the_end_of_the_output_not_of_the_program() -> None:
    with open("/dev/full", "wb") as full:
        output = Output(full.fileno())
        output.write("text")
        output.close()
        assert isinstance(output.broken, OSError)


def test_what_the_encoding_cannot_say_is_escaped(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    output = Output(writer, encoding="ascii")
    output.write("naïve \ud800 ∞\n")
    output.close()
    os.close(writer)
    assert read_all(reader) == b"na\\xefve \\ud800 \\u221e\n"


def test_closing_twice_or_unused_is_fine(pipe: tuple[int, int]) -> None:
    output = Output(pipe[1])
    assert not output.isatty()
    assert output.fileno() == pipe[1]
    output.close()
    output.close()
