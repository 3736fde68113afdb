"""The wheel that a release builds from its sdist holds all that the command line needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SWEEP = {
    "recipe": {
        "data": {"path": "digits"},
        "model": {"arch": "resnet18", "width": 4},
        "budget": {"epochs": 4, "generation_length": 2},
        "optimizer": {"warmup_share": 0.0},
    },
    "placement": {"storage": "runs", "tracking": {"wandb": "off"}, "threads": 1},
    "axes": {"method": ["normal", "seal"]},
    "analyses": ["calibration"],
}


@pytest.fixture(scope="module")
def bin_(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment that has the wheel, and of our own the dependencies only."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = folder / "source"  # a copy, because building leaves files beside what it builds
    for package in ("seal_ray", "analysis"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, source / package, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run(
        [sys.executable, "-c", code], cwd=source, check=True, timeout=100, stdout=subprocess.DEVNULL
    )
    [sdist] = folder.glob("seal_ray-*.tar.gz")
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sdist]
    subprocess.run(build, check=True, timeout=200)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    [wheel] = folder.glob("seal_ray-*.whl")
    place = [*pip, "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", wheel]
    subprocess.run(place, check=True, timeout=100)
    return folder / "venv" / "bin"


def test_a_sweep_is_trained_and_analysed_with_the_wheel_alone(bin_: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    (tmp_path / "analysis.py").write_text("raise RuntimeError('an analysis of the user')\n")
    # As a path alone it brings no .pth files, and so not the checkout that is installed there.
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"}

    def run(program: str, *words: str) -> str:
        done = subprocess.run(
            [bin_ / program, *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    code = "import seal_ray.analysis; print(seal_ray.__file__, seal_ray.analysis.__file__)"
    assert all(str(bin_.parent) in word for word in run("python", "-c", code).split())
    assert "forget-and-relearn" in run("seal-ray", "--help").lower()
    run("seal-ray", "data", "prepare", "digits", "--to", "digits", "--classes", "4", "--per-class", "24")
    assert "normal" in run("seal-ray", "sweep", "sweep.yaml", "--in-process")
    analysed = tmp_path.glob("runs/*/analysis/calibration-g001-relearned.json")
    assert sorted(path.parts[-3].split("-")[0] for path in analysed) == ["normal", "seal"]
    run("seal-ray", "report", "sweep.yaml", "-o", "report.html")
    assert (tmp_path / "report.html").stat().st_size > 10_000
