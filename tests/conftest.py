"""One thread for each process: the tests are small, and more threads than free cores make them many times slower.

No more open files than most systems let a process have, so that what leaves them open is found on every machine.
"""

import os
import resource

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard) if hard > 0 else 1024, hard))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under xdist a file's tests stay together, as they share what is costly; the contract suite's are dealt out.

    Of those, the ones that read what one launch of two ranks has left stay together too.
    """
    for item in items:
        contract = item.path.name == "test_contract.py"
        if not contract or "two_ranks" in getattr(item, "fixturenames", ()):
            file = item.path.relative_to(item.config.rootpath)
            item.add_marker(pytest.mark.xdist_group(f"{file}{' ranks' if contract else ''}"))


@pytest.fixture(autouse=True)
def no_process_group_is_left():
    """Composer joins a group of one for FSDP and stays in it, which the tests after would find."""
    from torch import distributed

    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()
