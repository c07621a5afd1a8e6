"""What every test shares."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from unetkit.utils import processes

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported: threads of two workers would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Where Python was told to keep no bytecode, as images for containers do, each worker and each process that a test
# starts would compile the package and rewrite the tests' assertions anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Building a network takes as long as it takes on a slow machine; that is not what these tests are about.
settings.register_profile("unetkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unetkit")


#: Files that take longest, by far more than their number of tests says; they come first, so that no process is left
#: with one of them while the others have nothing to do.
_LONGEST = (
    "test_ray_engine",
    "test_training",
    "test_docs",
    "test_runner",
    "test_tutorial",
    "test_encoders",
    "test_convert",
    "test_network",
    "test_checks",
    "test_models_as_smp_tests_them",
    "test_scaffold",
    "test_timm_encoders",
    "test_sweep",
    "test_nested_skips",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    """Leave out of garbage collection what was imported: objects by the hundred thousand, looked at again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    """Collect them at the end again: libraries in C++ print what was not."""
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def machine_to_itself(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Benchmarks hold devices by locks in the folder for temporary files; tests wait for none of a user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_server() -> None:
    """Fork all processes from one server, which would start anew for each test that needs more modules."""
    from unetkit.bench import grid, training_runner  # they import SciPy

    libraries = ("timm", "segmentation_models_pytorch", "torch._dynamo", "unetkit.testing.checks.new_process")
    processes._preloaded.update(dict.fromkeys((*grid.PRELOAD, *training_runner.PRELOAD, *libraries)))


@pytest.fixture
def float64() -> Iterator[None]:
    """Make float64 the default dtype: its rounding is far below the bounds of a test, whatever the processor."""
    import torch  # not for every test

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
