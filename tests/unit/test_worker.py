"""What a worker does beside training: it makes room when its host is to be taken away."""

from __future__ import annotations

from pathlib import Path

from seal_ray.distributed.workers import train_to_end
from seal_ray.phases.schedule import Row
from seal_ray.runs.folder import open_store
from seal_ray.training.world import World
from tests.faults.conftest import images_of, same_as_undisturbed
from tests.ray.conftest import small_job


def test_a_run_that_has_to_make_room_stops_after_an_epoch_and_goes_on_later(
    digits: Path, tmp_path: Path
) -> None:
    job = small_job(digits, tmp_path / "runs", "llf", loader="torch", tracking={"wandb": "off"})
    store = open_store(tmp_path / "runs", job.recipe, images_of(job))
    asked: list[Row] = []

    def after_the_second(row: Row) -> bool:
        asked.append(row)
        return len(asked) == 2

    ended = train_to_end(job, store, World(), after_the_second)
    assert ended["status"] == "stopped"
    assert "about to be taken away; the same command goes on" in ended["reason"]
    assert store.status() == {"run_id": store.run_id, **ended}
    assert [row["global_epoch"] for row in store.rows()] == [0, 1]

    last = job.recipe.budget.epochs - 1
    ended = train_to_end(job, store, World(), lambda row: row["global_epoch"] == last)
    assert ended == {"status": "finished", "reason": ""}
    same_as_undisturbed(job, store, tmp_path / "alone")
