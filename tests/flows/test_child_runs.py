"""What a parent of child runs does when nobody takes them."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows import child_runs
from flows.child_runs import Range
from flows.dispatch import Run
from storage.errors import ServiceError


def test_children_that_no_worker_takes_end_the_parent(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, asked, cancelled = [True], [0], []
    monkeypatch.setattr(child_runs, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(child_runs, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(child_runs, "is_served", lambda *_: served[0])

    class Children(child_runs._Children):
        def _run_for(self, one: Range) -> str:
            return "run"

        def _look(self, run_id: str) -> Run:
            asked[0] += 1
            served[0] = asked[0] < 50  # much longer than a parent is patient: its turn has not come
            return Run(run_id, "SCHEDULED", datetime.now(UTC))

        def _cancel(self, run_id: str) -> None:
            cancelled.append(run_id)

    with pytest.raises(ServiceError, match="No worker takes the child runs any more"):
        Children("http://nowhere", "x/x", "digest", lambda _: False).see_through([Range(tmp_path, 0, 2)])
    assert asked[0] > 50 and cancelled == ["run"]
