"""SIGKILL to every service of the stack, one after the other; `dmcp up` brings all of them back, where they were."""

import psutil

from flows.programs import answers
from flows.stack import SERVICES, status
from storage.server_state import read_state
from tests.service.place import Place


def pids(place: Place) -> dict[str, int]:
    state = read_state(place.settings.home_path())
    assert state is not None
    assert state.pid is not None
    return {name: state.pid if name == "objects" else place.daemon(name).pid for name in SERVICES}


def test_up_brings_back_what_was_killed_at_the_same_addresses(place: Place) -> None:
    before = {one.name: one.address for one in status(place.settings)}
    killed = pids(place)
    children = [child for pid in killed.values() for child in psutil.Process(pid).children(recursive=True)]
    for number, (name, pid) in enumerate(killed.items(), 1):
        psutil.Process(pid).kill()
        psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)
        stopped = [one.name for one in status(place.settings) if one.state == "stopped"]
        assert name in stopped
        assert len(stopped) == number
    place.done("up")
    assert {one.name: one.address for one in status(place.settings)} == before
    assert {one.state for one in status(place.settings)} == {"running"}
    assert not set(pids(place).values()) & set(killed.values())
    assert answers(f"{before['gateway']}/readyz")()
    left = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not left, left  # MLflow's server process, which outlived the one that started it, was ended
