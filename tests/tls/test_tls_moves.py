"""A guest moves over TLS: certificates, a token, several lanes, links that break, and QEMU's own client."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
from certificates import Pki

from bench.lab import Lab, Program, program
from migrate.daemon.fault_proxy import FaultProxy
from migrate.daemon.toxics import Corrupt, LimitData


def port_of(destination: Program) -> int:
    port = destination.wait_event("listening")["port"]
    assert isinstance(port, int)
    return port


def finish(lab: Lab, source: Program, destination: Program) -> None:
    """A good end, and the guest whole at the destination."""
    assert source.wait() == 0, source.story() + destination.story()
    assert destination.wait() == 0, destination.story()
    lab.end_arrived_guest()
    lab.check_arrived()
    lab.check_witness()


def test_certificates_on_both_sides_and_everything_together(lab: Lab, pki: Pki) -> None:
    guest = lab.start_guest("--workload=mixed", "--rate=2000")
    options = (f"--tls-dir={pki.good}", "--tls-allow=host-b", "--tls-allow=HOST-A")
    destination = lab.start_destination("--once", *options)
    checked = lab.start_source(port_of(destination), guest, f"--tls-dir={pki.good}", "--check")
    assert checked.wait() == 0, checked.story() + destination.story()
    rows = {row["what"]: row["value"] for row in checked.wait_event("check")["items"]}
    assert "TLS 1.3" in rows["connection"]
    several = ("--lanes=3", "--compression=zlib", "--verify=full", "--downtime-limit=2000")
    source = lab.start_source(port_of(destination), guest, f"--tls-dir={pki.good}", *several)
    finish(lab, source, destination)
    assert destination.wait_event("connected")["identity"] == "host-a, host-a.example"
    for side in (source, destination):
        assert not [event for event in side.found("warning") if "TLS" in event["message"]]


def test_a_token_and_a_pinned_certificate(lab: Lab, pki: Pki) -> None:
    guest = lab.start_guest("--rate=100")
    token = f"--token-file={pki.token}"
    destination = lab.start_destination("--once", f"--tls-dir={pki.good}", token)
    pinned = f"--tls-fingerprint={pki.server_fingerprint}"
    source = lab.start_source(port_of(destination), guest, pinned, token, "--lanes=2")
    finish(lab, source, destination)
    secret = pki.token.read_text().strip()
    for side in (source, destination):
        assert secret not in side.story()
        assert all(secret not in str(event) for event in side.events)


async def test_links_that_break(lab: Lab, pki: Pki) -> None:
    """Lane and control connections are cut and garbled: each comes back with a handshake of its own."""
    guest = lab.start_guest("--workload=mixed", "--rate=3000")
    tls = f"--tls-dir={pki.good}"
    destination = lab.start_destination("--once", tls, "--keepalive-timeout=2")
    options = ("--downtime-limit=2000", "--keepalive-timeout=2", "--reconnect-timeout=30", "--lanes=2")
    async with asyncio.timeout(60), FaultProxy("127.0.0.1", port_of(destination)) as proxy:
        proxy.add(LimitData(bytes=2 << 20, connections=(1).__eq__))
        proxy.add(Corrupt(offsets=(1 << 20,), connections=(2).__eq__))
        source = lab.start_source(proxy.port, guest, tls, *options, "--max-bandwidth=8M")
        await proxy.wait_for(lambda: len(proxy.connections) > 4)
        await proxy.cut("reset")
        await asyncio.to_thread(source.wait_event, "reconnecting")
        await proxy.restore()
        await asyncio.to_thread(finish, lab, source, destination)
    assert source.summary["reconnects"] == 1
    assert source.summary["lane-resets"] >= 4
    reasons = " ".join(str(event.get("reason")) for event in source.found("lane-reset"))
    assert "bad record mac" in reasons.lower() or "DECRYPTION" in reasons


def test_steered_over_the_control_socket(lab: Lab, pki: Pki, tmp_path: Path) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", f"--tls-dir={pki.good}")
    control = tmp_path / "qmp"
    ram = [f"--ram={name}={path}" for name, path in lab.source_ram.items()]
    source = lab.run(
        "migrate-src",
        *ram,
        f"--guest-pid={guest.pid}",
        f"--control={control}",
        f"--tls-dir={pki.good}",
        "--tls-hostname=localhost",
    )
    source.wait_event("control")
    to = f"--to=127.0.0.1:{port_of(destination)}"
    subprocess.run([program("migrate-src"), "migrate", f"--control={control}", to], check=True)
    source.wait_event("summary")
    subprocess.run([program("migrate-src"), "quit", f"--control={control}"], check=True)
    finish(lab, source, destination)


def test_recover_asks_over_tls_too(lab: Lab, pki: Pki) -> None:
    """The source is killed in the handover: what it cannot know any more it learns only over TLS."""
    guest = lab.start_guest("--rate=100")
    pid = lab.witness.with_name("source.pid")
    tls = f"--tls-dir={pki.good}"
    destination = lab.start_destination(tls, f"--on-commit=kill -9 $(cat {pid})", resume=False)
    source = lab.start_source(port_of(destination), guest, tls, f"--state-cmd=echo $PPID > {pid}")
    assert source.wait() == -9
    destination.wait_event("running")
    state = f"--state-dir={lab.source_state}"
    plain = lab.run("migrate-src", "recover", state)
    assert plain.wait() == 10 and "over TLS only" in plain.story(), plain.story()
    secured = lab.run("migrate-src", "recover", state, tls)
    assert secured.wait() == 0, secured.story()
    assert [event["guest"] for event in secured.events] == ["the guest runs at the destination"]
    assert lab.is_stopped(guest)


@pytest.mark.parametrize("option", ["--token-file", "--tls-allow"])
def test_without_certificate_there_is_nothing_to_add_to(lab: Lab, pki: Pki, option: str) -> None:
    destination = lab.run("migrate-dst", "--listen=127.0.0.1:0", "--ram=/x", f"{option}={pki.token}")
    assert destination.wait() == 2
    assert "--tls-dir" in destination.story()


def test_a_link_is_measured_over_tls(lab: Lab, pki: Pki, tmp_path: Path) -> None:
    """By who may move a guest over it, and by nobody else."""
    ram = tmp_path / "some.ram"
    ram.write_bytes(bytes(1 << 20))
    token, pinned = f"--token-file={pki.token}", f"--tls-fingerprint={pki.server_fingerprint}"
    destination = lab.start_destination(f"--tls-dir={pki.good}", token)
    to = f"--to=127.0.0.1:{port_of(destination)}"

    def plan(*options: str) -> Program:
        return lab.run("migrate-src", "plan", f"--ram={ram}", to, "--duration=1", *options)

    measured = plan(token, pinned)
    assert measured.wait() == 0, measured.story()
    [planned] = measured.wait_event("plan")["predictions"]
    assert planned["bandwidth"] > 1 << 20 and 0 < planned["round-trip"] < 1
    unknown = plan(pinned, f"--tls-dir={pki.good}")
    assert unknown.wait() == 3, unknown.story()
    assert "token" in unknown.wait_event("error")["message"]
    plain = plan()
    assert plain.wait() in (3, 4), plain.story()  # 4: the reset that follows has overtaken the answer
    destination.wait_event("warning", lambda event: "over TLS only" in event["message"])
    assert not destination.found("migration")
    destination.kill()
