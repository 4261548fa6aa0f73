"""The bare pump: how fast this machine moves bytes over loopback when nothing is done with them.

Two processes with the socket settings of a lane: one sends the same mebibyte again and again, the other
receives into a buffer of a mebibyte. What a migration is measured against, in the same run, since the
machine's speed changes from minute to minute. `iperf3`, where installed, is a second opinion.

The RAM pump is the same with RAM at both ends: each mebibyte is read from one memory file before it is sent,
written into another when it has come, and read back there (proof level `ram`). It has no records, digests,
checksums or caches: what a program that keeps the rules of the data path (a page is copied out of RAM before
it is looked at, nothing unchecked is written into RAM, what was written is read back) can reach at most.

    python -m bench.pump [--gib 2] [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path

from migrate.daemon.sockets import tune_lane

PIECE = 1 << 20
GIB = 1 << 30
IPERF3 = "iperf3"
ROOT = Path(__file__).resolve().parent.parent


def pump_rate(gib: float) -> float:
    """GB/s (10**9 bytes) of moving that many GiB, from the first byte out to the receiver's word."""
    pieces = max(1, round(gib * GIB / PIECE))
    return rate_of(pieces, repeat(bytes(range(256)) * (PIECE // 256), pieces), [])


def ram_pump_rate(source: Path, destination: Path) -> float:
    """GB/s of moving a RAM file of whole mebibytes into another that has its pages in memory."""
    with source.open("rb", buffering=0) as file:
        pieces = os.fstat(file.fileno()).st_size // PIECE
        return rate_of(pieces, _ram_pieces(file.fileno(), pieces), ["--into", str(destination)])


def _ram_pieces(fd: int, pieces: int) -> Iterator[bytearray]:
    buffer = bytearray(PIECE)
    for index in range(pieces):
        if os.preadv(fd, [buffer], index * PIECE) != PIECE:
            raise RuntimeError(f"the RAM file ended at mebibyte {index}")
        yield buffer


def rate_of(pieces: int, content: Iterator[bytes | bytearray], options: list[str]) -> float:
    """GB/s of `content`, which is that many pieces, into a receiver with `options`.

    Raises:
        RuntimeError: something else arrived.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = subprocess.Popen(
            [sys.executable, "-m", "bench.pump", "--receive", str(listener.fileno()), *options],
            pass_fds=(listener.fileno(),),
            cwd=ROOT,
        )
        try:
            with socket.create_connection(listener.getsockname()) as sock:
                tune_lane(sock, sends=True)
                sock.recv(1)  # the receiver is ready: its start is not measured
                begin = time.perf_counter()
                for piece in content:
                    sock.sendall(piece)
                sock.shutdown(socket.SHUT_WR)
                received = int(sock.recv(32) or b"0")
                seconds = time.perf_counter() - begin
        finally:
            receiver.kill()
            receiver.wait()
    if received != pieces * PIECE:
        raise RuntimeError(f"the pump sent {pieces * PIECE} bytes, {received} arrived")
    return received / seconds / 1e9


def iperf3_rate(gib: float) -> float | None:
    """GB/s of one iperf3 stream over loopback; None: iperf3 is not installed."""
    if shutil.which(IPERF3) is None:
        return None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    server = subprocess.Popen(
        [IPERF3, "--server", "--one-off", "--bind", "127.0.0.1", "--port", port, "--forceflush"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "listening" in line:
                break
        client = subprocess.run(
            [
                *(IPERF3, "--client", "127.0.0.1", "--port", port, "--json"),
                *("--length", str(PIECE), "--bytes", str(round(gib * GIB))),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        server.terminate()
        server.communicate()
    return float(json.loads(client.stdout)["end"]["sum_received"]["bits_per_second"]) / 8e9


def _receive(listener: socket.socket, into: Path | None) -> None:
    """Take one connection's bytes, into a file if one is named, and answer with their number."""
    sock, _ = listener.accept()
    with sock, into.open("r+b", buffering=0) if into else nullcontext() as file:
        tune_lane(sock, sends=False)
        buffer, received = bytearray(PIECE), 0
        sock.sendall(b"r")
        while count := sock.recv_into(buffer, PIECE, socket.MSG_WAITALL):
            if file is not None:
                os.pwritev(file.fileno(), [memoryview(buffer)[:count]], received)
                os.preadv(file.fileno(), [memoryview(buffer)[:count]], received)
            received += count
        sock.sendall(str(received).encode())


def main() -> None:
    """Print the medians of some interleaved runs."""
    parser = argparse.ArgumentParser(prog="python -m bench.pump", description="speed of bare loopback TCP")
    parser.add_argument(
        "--gib", type=float, default=2.0, help="GiB to move in each run (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--receive", type=int, metavar="FD", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive is not None:
        with socket.socket(fileno=arguments.receive) as listener:
            _receive(listener, arguments.into)
        return
    pump, iperf3 = [], []
    for _ in range(arguments.runs):
        pump.append(pump_rate(arguments.gib))
        if (rate := iperf3_rate(arguments.gib)) is not None:
            iperf3.append(rate)
    print(f"bare pump  {_summary(pump)}")
    print(f"iperf3     {_summary(iperf3) if iperf3 else 'not installed (apt-get install iperf3)'}")


def _summary(rates: list[float]) -> str:
    return (
        f"{statistics.median(rates):.2f} GB/s, median of {len(rates)} ({min(rates):.2f} to {max(rates):.2f})"
    )


if __name__ == "__main__":
    main()
