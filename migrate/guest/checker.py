"""The verdict on the RAM of a guest that does not run: is every page what the guest left there?

Kinds of fault, by page:

    torn     front and back carry different versions: the page was copied while it was written, and not again
    lost     the page is zeros, though the guest filled it: it never arrived
    stale    the page is whole, but older than the version table says: a later write was missed. A table page
             older than its data pages, a header or a state page older than the rest count as stale too
    damaged  anything else: its bytes fit no version of the page, or it belongs elsewhere

and one over all: `lost-writes`, the writes that the guest counted and no page has. It finds what pages cannot
show: page and table entry both old. The one page in flight may be torn; finishing it must make it right.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from migrate.errors import RamError, RefusedError
from migrate.guest._native import Check, Model
from migrate.guest.layout import PAGE, WORKLOADS, Layout, LayoutError, State, unpack_state
from migrate.guest.ram_files import RamFiles

VERDICTS = ("good", "torn", "lost", "stale", "damaged", "table-stale", "table-damaged")
_CHUNK_PAGES = 256


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, for a person."""

    kind: str
    """torn, lost, stale, damaged, or lost-writes."""
    file: str
    page: int
    """In its file; -1: no single page."""
    text: str


@dataclass(slots=True)
class CheckReport:
    """What `check` found."""

    pages_checked: int = 0
    """Data pages."""
    torn: int = 0
    lost: int = 0
    stale: int = 0
    damaged: int = 0
    lost_writes: int = 0
    beat: int = 0
    writes: int = 0
    """Page writes over the guest's whole life."""
    in_flight: bool = False
    """The guest was stopped in the middle of a page write."""
    faults: list[Fault] = field(default_factory=list)
    """The first ones in full."""

    @property
    def clean(self) -> bool:
        """Nothing is wrong."""
        return not (self.torn or self.lost or self.stale or self.damaged or self.lost_writes)

    def as_json(self) -> dict[str, object]:
        """Keys with dashes, `clean` and the faults among them."""
        values: dict[str, object] = {key.replace("_", "-"): value for key, value in asdict(self).items()}
        return {"clean": self.clean, **values}

    def add(self, kind: str, path: Path, page: int, text: str) -> None:
        """Count and describe a fault of a page that is no data page."""
        if kind == "stale":
            self.stale += 1
        else:
            self.damaged += 1
        self.faults.append(Fault(kind, str(path), page, text))


def native_model(layout: Layout) -> Model:
    """The layout as the compiled loops take it."""
    return Model(
        tag=layout.tag,
        seed=layout.seed,
        workload=WORKLOADS.index(layout.workload),
        fill_writes=layout.fill_writes,
        blocks=layout.native_blocks(),
    )


def describe_fault(fault: tuple[int, int, int, int, int], paths: tuple[Path, ...]) -> Fault:
    """A verdict of the compiled loops as a sentence."""
    verdict, block, page, found, expected = fault
    kind = VERDICTS[verdict]
    text = {
        "torn": f"its halves are of different versions, the older {found}; the table says {expected}",
        "lost": f"it is all zeros; the table says version {expected}",
        "stale": f"it holds version {found}; the table says {expected}",
        "damaged": f"its bytes fit no version of this page; the table says {expected}",
        "table-stale": f"the table says version {expected}, the page has had {found}: the table is old",
        "table-damaged": "its table entry is no entry of this page",
    }[kind]
    return Fault(kind.removeprefix("table-"), str(paths[block]), page, f"{paths[block]} page {page}: {text}")


def check(paths: list[Path]) -> CheckReport:
    """Verify the RAM in these files, block by block in their order.

    Raises RamError: the files cannot be read as the blocks of one guest. RefusedError: the guest runs.
    """
    with RamFiles.inspect(paths) as files:
        report = CheckReport()
        page = files.read(0, PAGE, PAGE)
        state = _check_state(files, page, report)
        if state is not None:
            native = Check(native_model(files.layout), state.slot)
            for block in range(len(paths)):
                _check_block(files, block, native, report)
            _add_up(files, state, native, report)
        if files.read(0, PAGE, PAGE) != page:
            raise RefusedError(
                f"the guest on {paths[0]} runs: its state changed during the check",
                guest="it runs on, untouched",
                hint="stop it (kill -STOP PID) or end it before the check",
            )
        return report


def _check_state(files: RamFiles, page: bytes, report: CheckReport) -> State | None:
    """State page and mirrors of the beat; None if the state page tells nothing."""
    try:
        state = unpack_state(page)
    except LayoutError as error:
        report.add("damaged", files.paths[0], 1, f"{files.paths[0]}: {error}")
        return None
    report.beat, report.writes, report.in_flight = state.beat, state.done, state.slot is not None
    for path, mirror in zip(files.paths, files.mirrors, strict=True):
        if mirror > state.beat:
            report.add(
                "stale",
                files.paths[0],
                1,
                f"state page: beat {state.beat}, the header of {path} has {mirror}",
            )
        elif mirror < state.beat - 1:
            report.add("stale", path, 0, f"header of {path}: beat {mirror}, the state page has {state.beat}")
    return state


def _check_block(files: RamFiles, block: int, native: Check, report: CheckReport) -> None:
    layout, path = files.layout, files.paths[block]
    first_table, first_data = layout.first_table_page(block), layout.first_data_page(block)
    pages = layout.block_pages[block]
    table = files.read(block, first_table * PAGE, (first_data - first_table) * PAGE)
    for start, end in ((0, first_data), (pages, len(table) // 8)):
        for entry in range(start, end):
            if table[8 * entry : 8 * entry + 8] != bytes(8):
                page = first_table + entry * 8 // PAGE
                report.add("damaged", path, page, f"{path} page {page}: table entry {entry} must be 0")
                break
    buffer = bytearray(_CHUNK_PAGES * PAGE)
    view = memoryview(buffer)
    for first in range(first_data, pages, _CHUNK_PAGES):
        count = min(_CHUNK_PAGES, pages - first)
        files.read_into(block, first * PAGE, view[: count * PAGE])
        native.pages(block, first, view[: count * PAGE], memoryview(table)[8 * first : 8 * (first + count)])
    report.pages_checked += pages - first_data


def _add_up(files: RamFiles, state: State, native: Check, report: CheckReport) -> None:
    counts = dict(zip(VERDICTS, native.counts, strict=True))
    report.torn += counts["torn"]
    report.lost += counts["lost"]
    report.stale += counts["stale"] + native.stale_table_pages
    report.damaged += counts["damaged"] + counts["table-damaged"]
    report.faults += [describe_fault(fault, files.paths) for fault in native.faults]
    missing = state.done - native.versions
    if missing > 0:
        report.lost_writes = missing
        text = f"{missing} of {state.done} page writes are in no page: pages and their table entries are old"
        report.faults.append(Fault("lost-writes", str(files.paths[0]), -1, text))
    elif missing < 0 and not report.stale:  # else that is the reason, and told already
        text = (
            f"state page: it counts {state.done} page writes, the pages have had {native.versions}: it is old"
        )
        report.add("stale", files.paths[0], 1, text)


def require_readable_state(files: RamFiles) -> State:
    """The state page of a guest to be resumed, plausible against the mirrors of its beat.

    Raises RamError: it is damaged, or it and the headers are not of one moment.
    """
    report = CheckReport()
    state = _check_state(files, files.read(0, PAGE, PAGE), report)
    if state is None or report.faults:
        raise RamError(
            f"this RAM cannot be resumed: {report.faults[0].text}",
            hint="migrate-guest --check --ram … tells more",
        )
    return state
