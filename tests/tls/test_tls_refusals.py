"""Who does not fit is told why, on both sides, before anything moves; the guest runs on at the source."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from certificates import Authority, Pki, write_token

from bench.lab import Lab
from tests.failure_table import FailureRow


@dataclass(frozen=True)
class Case:
    """What each side is given, and what must come of it."""

    name: str
    destination: str
    """Key of DESTINATIONS."""
    source: tuple[str, ...]
    said: tuple[str, ...]
    """In the source's error, its hint and where it failed."""
    warned: str = ""
    """In a warning of the destination; empty: there need be none."""


DESTINATIONS: dict[str, tuple[str, ...]] = {
    "mutual": ("--tls-dir={good}",),
    "listed": ("--tls-dir={good}", "--tls-allow=host-b"),
    "token": ("--tls-dir={good}", "--token-file={token}"),
    "plain": (),
    "other-ca": ("--tls-dir={server_of_other_ca}",),
    "expired": ("--tls-dir={server_expired}",),
    "misnamed": ("--tls-dir={server_misnamed}",),
    "client-cert": ("--tls-dir={server_with_client_usage}",),
    "revoking": ("--tls-dir={revoking}",),
}
ISSUER = "unable to get local issuer certificate"
CASES = [
    Case("wrong CA at the destination", "other-ca", ("--tls-dir={good}",), (ISSUER, "ca-cert.pem")),
    Case("destination expired", "expired", ("--tls-dir={good}",), ("certificate has expired", "clock")),
    Case("wrong name", "misnamed", ("--tls-dir={good}",), ("mismatch", "127.0.0.1", "--tls-hostname")),
    Case(
        "no server's certificate", "client-cert", ("--tls-dir={good}",), ("unsuitable certificate purpose",)
    ),
    Case(
        "wrong CA at the source",
        "mutual",
        ("--tls-dir={client_of_other_ca}",),
        ("does not know the CA", "client-cert.pem"),
        ISSUER,
    ),
    Case("source expired", "mutual", ("--tls-dir={client_expired}",), ("has expired",), "expired"),
    Case(
        "no certificate of the source",
        "mutual",
        ("--tls-dir={ca_only}", "--token-file={token}"),
        ("wants a certificate", "client-key.pem"),
        "did not return a certificate",
    ),
    Case("source revoked", "revoking", ("--tls-dir={good}",), ("does not take",), "revoked"),
    Case(
        "no client's certificate", "mutual", ("--tls-dir={server_as_client}",), ("does not take",), "purpose"
    ),
    Case("not on the list", "listed", ("--tls-dir={good}",), ("host-a", "--tls-allow host-a"), "host-a"),
    Case(
        "wrong fingerprint",
        "mutual",
        ("--tls-dir={good}", "--tls-fingerprint=" + "ab" * 32),
        ("not the one of --tls-fingerprint", "look at its fingerprint there"),
    ),
    Case(
        "wrong token",
        "token",
        ("--tls-dir={ca_only}", "--token-file={other_token}"),
        ("token is not the destination's", "--token-file"),
        "token",
    ),
    Case("no token", "token", ("--tls-dir={good}",), ("knows its token", "--token-file")),
    Case("plain to TLS", "mutual", (), ("over TLS only", "--tls-dir"), "TLS only"),
    Case("plain to TLS with a token", "token", (), ("over TLS only", "--token-file"), "TLS only"),
    Case("TLS to plain", "plain", ("--tls-dir={good}",), ("does not speak TLS", "--tls-dir"), "speaks TLS"),
]


@pytest.fixture(scope="module")
def places(pki: Pki) -> dict[str, str]:
    """The directories and files of the cases, by the names in their braces."""
    root = pki.root

    def made(name: str, sign: Callable[[Path], object]) -> str:
        directory = root / name
        shutil.copytree(pki.good, directory)
        sign(directory)
        return str(directory)

    def server(ca: Authority, name: str = "127.0.0.1", **more: bool) -> Callable[[Path], object]:
        return lambda directory: ca.sign(directory, "server", "destination", [name], **more)

    def client(ca: Authority, **more: bool) -> Callable[[Path], object]:
        return lambda directory: ca.sign(directory, "client", "host-a", **more)

    def as_client(directory: Path) -> None:
        for kind in ("cert", "key"):
            shutil.copy(directory / f"server-{kind}.pem", directory / f"client-{kind}.pem")

    def client_usage(directory: Path) -> None:
        pki.ca.sign(directory, "server", "destination", ["127.0.0.1"], usage="client")

    def revoking(directory: Path) -> None:
        pki.ca.revoke(directory, pki.client)

    return {
        "good": str(pki.good),
        "ca_only": str(pki.ca_only),
        "token": str(pki.token),
        "other_token": str(write_token(root / "other-token", "another token, long enough")),
        "server_of_other_ca": made("server-of-other-ca", server(pki.other_ca)),
        "server_expired": made("server-expired", server(pki.ca, expired=True)),
        "server_misnamed": made("server-misnamed", server(pki.ca, "dst.example")),
        "server_with_client_usage": made("server-client-usage", client_usage),
        "client_of_other_ca": made("client-of-other-ca", client(pki.other_ca)),
        "client_expired": made("client-expired", client(pki.ca, expired=True)),
        "server_as_client": made("server-as-client", as_client),
        "revoking": made("revoking", revoking),
    }


class Stand:
    """One guest, and a destination for each key of DESTINATIONS."""

    def __init__(self, lab: Lab, places: dict[str, str]) -> None:
        self.lab = lab
        self.guest = lab.start_guest("--rate=100")
        self._places = places
        self.destinations = {
            key: lab.run(
                "migrate-dst",
                "--listen=127.0.0.1:0",
                f"--ram={lab.destination_ram['pc.ram']}",
                *self.options(options),
            )
            for key, options in DESTINATIONS.items()
        }

    def options(self, texts: tuple[str, ...]) -> list[str]:
        return [text.format(**self._places) for text in texts]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, places: dict[str, str]) -> Iterator[Stand]:
    directory = tmp_path_factory.mktemp("stand")
    with Lab(directory, directory, [("pc.ram", "1M")]) as lab:
        yield Stand(lab, places)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_refused_by_name(stand: Stand, case: Case) -> None:
    destination = stand.destinations[case.destination]
    before = len(destination.found("warning"))
    port = destination.wait_event("listening")["port"]
    source = stand.lab.start_source(port, stand.guest, *stand.options(case.source))
    assert source.wait() == 3, source.story() + destination.story()
    error = source.wait_event("error")
    said = " ".join(str(error[key]) for key in ("message", "hint", "side"))
    for words in case.said:
        assert words in said, said
    assert "runs at the source" in error["guest"]
    assert not stand.lab.is_stopped(stand.guest)
    assert not stand.lab.destination_ram["pc.ram"].exists(), "nothing was touched there"
    if case.warned:
        destination.wait_event(
            "warning",
            lambda event: event in destination.found("warning")[before:] and case.warned in str(event),
        )


@pytest.mark.parametrize(
    "case_name",
    [
        pytest.param("wrong CA at the source", marks=pytest.mark.failure_row("source's certificate")),
        pytest.param(
            "wrong CA at the destination", marks=pytest.mark.failure_row("destination's certificate")
        ),
        pytest.param("wrong name", marks=pytest.mark.failure_row("destination's name")),
        pytest.param("wrong fingerprint", marks=pytest.mark.failure_row("destination's fingerprint")),
        pytest.param("wrong token", marks=pytest.mark.failure_row("wrong token")),
        pytest.param("plain to TLS", marks=pytest.mark.failure_row("TLS at the destination only")),
        pytest.param("TLS to plain", marks=pytest.mark.failure_row("TLS at the source only")),
    ],
)
def test_the_rows_of_the_failure_table(stand: Stand, row: FailureRow, case_name: str) -> None:
    [case] = [case for case in CASES if case.name == case_name]
    port = stand.destinations[case.destination].wait_event("listening")["port"]
    source = stand.lab.start_source(port, stand.guest, *stand.options(case.source))
    source.wait()
    row.check(stand.lab, stand.guest, source)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_without_tls_only_loopback_is_listened_on(lab: Lab, address: str) -> None:
    refused = lab.run("migrate-dst", f"--listen={address}", "--ram=/x")
    assert refused.wait() == 2, refused.story()
    error = refused.wait_event("error")
    assert "loopback" in error["message"] and "--insecure" in error["hint"] and "--tls-dir" in error["hint"]


def test_what_is_insecure_says_so(lab: Lab) -> None:
    guest = lab.start_guest("--rate=100")
    destination = lab.start_destination("--once", "--insecure", listen="0.0.0.0:0")
    source = lab.start_source(destination.wait_event("listening")["port"], guest)
    assert source.wait() == 0, source.story()
    for side in (source, destination):
        assert len([event for event in side.found("warning") if "no TLS" in event["message"]]) == 1
    lab.end_arrived_guest()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda at: (at / "client-key.pem").unlink(), "client-key.pem cannot be read"),
        (lambda at: (at / "client-key.pem").chmod(0o640), "chmod 600"),
        (lambda at: (at / "ca-cert.pem").write_text("nonsense"), "ca-cert.pem does not fit"),
        (lambda at: shutil.copy(at / "server-key.pem", at / "client-key.pem"), "another certificate's"),
    ],
    ids=["missing", "open-to-all", "nonsense", "of-another"],
)
def test_unfit_files_are_named(
    lab: Lab, pki: Pki, tmp_path: Path, damage: Callable[[Path], object], words: str
) -> None:
    directory = shutil.copytree(pki.good, tmp_path / "tls")
    damage(directory)
    source = lab.run("migrate-src", "--to=127.0.0.1:1", "--ram=/x", f"--tls-dir={directory}")
    assert source.wait() == 2, source.story()
    assert words in source.story()
