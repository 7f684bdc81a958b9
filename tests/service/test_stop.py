"""The end of the stack that this package's tests share: the last module by its name, and so the last to run."""

import psutil
import pytest

from flows import daemons
from tests.service.place import SERVICES, Place

pytestmark = pytest.mark.timeout(300)


def test_down_stops_everything_and_up_would_start_it_at_the_same_address(place: Place) -> None:
    """Last: the stack is gone afterwards."""
    home = place.settings.home_path()
    living = [daemon for name in SERVICES if (daemon := daemons.find(home, name))]
    families = [p for d in living for p in (psutil.Process(d.pid), *psutil.Process(d.pid).children(recursive=True))]
    done = place.dmcp("down")
    assert done.code == 0
    assert all(name in done.out for name in ("gateway", "object store", "Prefect", "Prefect worker", "MLflow"))
    psutil.wait_procs(families, timeout=60)
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in families)
    assert place.dmcp("down").out.startswith("Nothing was running")
    assert place.dmcp("status").out.count("stopped") == len(SERVICES) + 1
    port = int(next(d for d in living if d.name == "prefect").address.rpartition(":")[2])
    assert daemons.port_for(home, "prefect") == port
