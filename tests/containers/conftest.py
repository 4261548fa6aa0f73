"""Container tests run through `bin/test-containers`, which prepares the image and finds Compose."""

from __future__ import annotations

import os

import pytest

from tests.containers.hosts import COMPOSE_VARIABLE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if COMPOSE_VARIABLE in os.environ:
        return
    for item in items:
        if item.nodeid.startswith("tests/containers/"):
            item.add_marker(pytest.mark.skip(reason="container tests are run by bin/test-containers"))
