"""What can be said of a launch before Ray is started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seal_ray import api
from seal_ray.distributed.launch import begin, prepare_job
from seal_ray.distributed.workers import check_room
from seal_ray.errors import ClusterError
from seal_ray.runs.summary import summarise
from seal_ray.storage.lease import hold_lease
from tests.ray.conftest import small_job


@pytest.mark.parametrize(
    ("wish", "workers", "cpus", "gpus", "found"),
    [
        ("auto", 2, 4, 0, False),
        ("auto", 2, 4, 2, True),
        (False, 2, 2, 8, False),
        (True, 2, 2, 2, True),
        (True, 2, 4, 1, "2 workers need a GPU each, this machine has 1"),
        (True, 1, 4, 0, "placement.use_gpu: this machine has no GPU that Ray sees"),
        ("auto", 2, 4, 1, "2 workers need a GPU each, this machine has 1"),
        ("auto", 4, 2, 0, "4 workers need a CPU each, this machine has 2"),
    ],
)
def test_workers_fit_a_machine_or_it_is_said_what_is_lacking(
    wish: object, workers: int, cpus: int, gpus: int, found: object, tmp_path: Path
) -> None:
    job = small_job(tmp_path, tmp_path, "normal", workers=workers, use_gpu=wish)
    if isinstance(found, bool):
        assert check_room(job, "this machine", cpus, gpus) is found
    else:
        with pytest.raises(ClusterError, match=found):
            check_room(job, "this machine", cpus, gpus)


def test_gpus_that_are_not_there_are_an_error_without_ray(digits: Path, tmp_path: Path) -> None:
    file, storage = tmp_path / "gpu.yaml", tmp_path / "runs"
    file.write_text(
        f"recipe: {{data: {{path: {digits}}}, model: {{arch: resnet18, width: 4}}, method: normal,"
        f" budget: {{epochs: 2, generation_length: 2}}}}\nplacement: {{use_gpu: true, storage: {storage}}}\n"
    )
    code = (
        "import sys; from seal_ray.cli import main; sys.argv[0] = 'seal-ray'\n"
        "try: main()\nexcept SystemExit as ended: print(ended.code, 'ray' in sys.modules)"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"base: {file}\naxes: {{method: [normal]}}\n")
    for command, read in (("train", file), ("sweep", sweep)):
        words = [sys.executable, "-c", code, command, str(read)]
        done = subprocess.run(words, env=hidden, capture_output=True, text=True, check=True)
        first, *_, last = done.stdout.splitlines()
        assert first.startswith(f"{read}: ")
        assert last == "2 False"
        assert "placement.use_gpu: this machine has no GPU that Ray sees" in done.stderr
    assert not list(storage.glob("*/job.yaml"))


def test_a_run_is_starting_until_workers_train_it(digits: Path, tmp_path: Path) -> None:
    planned = prepare_job(small_job(digits, tmp_path, "normal", tracking={"wandb": "off"}))
    folder = planned.store.folder
    with hold_lease(folder):
        begin(planned, lambda text: None)
        assert summarise(folder)["status"] == "starting"
    assert summarise(folder)["status"] == "interrupted"  # nobody holds it any more
    seen = [api.load(folder).status for _ in api.fit(planned.job.recipe, storage=tmp_path)]
    assert seen == ["running"] * 5 + ["finished"]
