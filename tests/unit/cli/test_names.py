"""Names of files that are not UTF-8, as other systems leave them, in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[3]


def said(folder: Path, *words: bytes) -> tuple[int, str, str]:
    """What a command ends with and prints in a folder."""
    command = [os.fsencode(sys.executable), b"-m", b"seal_ray", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def write_image(path: bytes, grey: int) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - bytes
    with open(path, "wb") as file:  # noqa: PTH123
        Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(file, "PNG")


def test_images_and_folders_are_called_as_they_are(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    for i in range(4):
        write_image(root + b"/im\xe9/cats/caf\xe9%d.png" % i, i)
        write_image(root + b"/im\xe9/dogs/%d.png" % i, 9 + i)
    prepare = [b"data", b"prepare", b"folder", b"--size", b"8", b"--val-share", b"0.25", b"--name", b"pets"]
    code, out, err = said(tmp_path, *prepare, b"--source", b"im\xe9", b"--to", b"to\xe9")
    assert (code, err) == (0, "")
    assert out.startswith("to\\udce9: pets, 2 classes, 6 train, 2 val images of 8 px")
    code, out, _ = said(tmp_path, b"data", b"list", b"--folder", b".")
    assert code == 0

    write_image(root + b"/val/caf\xe9/broken.png", 1)
    (tmp_path / "train" / "cats").mkdir(parents=True)
    (tmp_path / "train" / "cats" / "cat.png").write_bytes(b"no image, and not looked at")
    both = [b"data", b"prepare", b"folder", b"--to", b"there", b"--train", b"train", b"--val", b"val"]
    code, out, err = said(tmp_path, *both)
    assert (code, out) == (2, "")
    assert err == "error: 'caf\\xe9', a folder in val, is not a name in UTF-8; rename it\n"


def test_a_yaml_file_gives_its_run_no_such_name(tmp_path: Path) -> None:
    job = {"data": {"path": "x"}, "method": "normal", "budget": {"epochs": 1, "generation_length": 1}}
    with open(os.fsencode(tmp_path) + b"/r\xe9.yaml", "w") as file:  # noqa: PTH123
        yaml.safe_dump({"recipe": job}, file)
    code, _, err = said(tmp_path, b"validate", b"r\xe9.yaml")
    assert code == 2
    assert err == "error: r\\udce9.yaml:1: name: must be text in UTF-8, not 'r\\udce9'\n"
    assert said(tmp_path, b"validate", b"r\xe9.yaml", b"--set", b"name=run")[0] == 0
