"""Test processes that run side by side divide the cores: thread pools larger than that wait for one another."""

import os
import sys

import pytest

# Before torch and NumPy are imported, and inherited by the processes that tests start.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))


@pytest.fixture(scope="session", autouse=True)
def _cache_of_decoded_images(tmp_path_factory):
    os.environ["HSIC_LAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


def pytest_collection_modifyitems(items):
    """The longest tests come first: at the end the other processes would wait for them."""
    long = (
        "test_the_wheel_runs_the_demo",
        "test_quickstart_runs",
        "test_explorer_notebook",
        "test_executes_in_the_fast",
    )
    items.sort(key=lambda item: not item.name.startswith(long))
