"""Regions that were never touched: found by one search each, and never called untouched too long."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ram_support import PAGE, Ram

from migrate.ram.image import RamImage, RamSpec
from migrate.ram.mappings import Mapping, parts
from migrate.ram.regions import REGION_BYTES, Stretch, TouchedRegions

REGION_PAGES = REGION_BYTES // PAGE


@pytest.fixture
def rams(shm_dir: Path) -> Iterator[list[Ram]]:
    """Two blocks, of three regions and a bit and of less than one."""
    rams = [Ram(shm_dir / "a", 3 * REGION_PAGES + 10), Ram(shm_dir / "b", 5)]
    yield rams
    for ram in rams:
        os.close(ram.fd)


@pytest.fixture
def regions(rams: list[Ram]) -> Iterator[TouchedRegions]:
    with RamImage.open_source([RamSpec(ram.path.name, ram.path) for ram in rams], PAGE) as image:
        yield TouchedRegions(image)


def test_nothing_is_touched_where_there_are_only_holes(regions: TouchedRegions) -> None:
    assert regions.look() == regions.touched == []


def test_data_makes_its_region_touched_for_good(rams: list[Ram], regions: TouchedRegions) -> None:
    rams[0].fill(REGION_PAGES, 1)  # the first page of the second region
    second = Stretch(REGION_BYTES, REGION_BYTES)
    assert regions.look() == regions.touched == [second]
    rams[0].punch(REGION_PAGES)
    rams[0].fill(2 * REGION_PAGES - 1, 1)
    assert regions.look() == []
    rams[0].fill(REGION_PAGES - 1, 1)  # the last one of the first
    assert regions.look() == [Stretch(0, REGION_BYTES)]
    assert regions.touched == [Stretch(0, 2 * REGION_BYTES)]


def test_the_last_region_of_a_block_is_as_short_as_it_is(rams: list[Ram], regions: TouchedRegions) -> None:
    rams[0].fill(rams[0].pages - 1, 1)
    rams[1].fill(4, 1)
    ends_at = 3 * REGION_BYTES + 10 * PAGE
    base = (3 * REGION_BYTES // PAGE + 256) * PAGE  # the next stripe
    assert regions.look() == [Stretch(3 * REGION_BYTES, ends_at - 3 * REGION_BYTES), Stretch(base, 5 * PAGE)]
    assert regions.look() == []


def test_every_region_at_once(rams: list[Ram], regions: TouchedRegions) -> None:
    for region in range(4):
        rams[0].fill(region * REGION_PAGES, 1)
    assert regions.look() == [Stretch(0, rams[0].pages * PAGE)]


def test_parts_of_a_mapping() -> None:
    mapping = Mapping(start=1000, length=100, origin=500)
    stretches = [Stretch(0, 510), Stretch(520, 10), Stretch(590, 100), Stretch(700, 5)]
    assert list(parts(mapping, stretches)) == [
        Mapping(1000, 10, 500),
        Mapping(1020, 10, 520),
        Mapping(1090, 10, 590),
    ]
