"""What a host says of a storage and of data that it is asked about."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from seal_ray.distributed.session import dataset_facts, problems_here


@pytest.fixture
def probe(tmp_path: Path) -> tuple[str, str]:
    """A file in a storage folder, and what it holds."""
    file = tmp_path / "runs" / ".probe"
    file.parent.mkdir()
    file.write_text("token")
    return str(file), "token"


def test_a_host_that_sees_the_same_has_nothing_to_say_and_leaves_nothing(
    probe: tuple[str, str], digits: Path
) -> None:
    assert problems_here(probe, {str(digits): dataset_facts(str(digits))}) == []
    assert [path.name for path in Path(probe[0]).parent.iterdir()] == [".probe"]


@pytest.mark.parametrize("change", ["missing", "another folder", "no folder"])
def test_another_storage_is_told(probe: tuple[str, str], change: str) -> None:
    file = Path(probe[0])
    if change == "another folder":
        file.write_text("another token")
    elif change == "missing":
        file.unlink()
    else:
        shutil.rmtree(file.parent)
    [said] = problems_here(probe, {})
    assert said.startswith(
        f"placement.storage: {file.parent} is not the folder that the other hosts see; mount"
    )
    assert said.endswith("or use an s3:// URI")


def test_a_storage_that_cannot_be_written_to_is_told(
    probe: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, text: str) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)  # root may write anywhere
    [said] = problems_here(probe, {})
    assert "runs cannot be written to (Read-only file system)" in said


def test_what_is_no_folder_is_not_looked_at() -> None:
    assert problems_here(None, {}) == []


def test_data_that_is_missing_or_other_is_told(digits: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    facts = {str(copy): dataset_facts(str(digits))}
    [said] = problems_here(None, facts)
    assert said.startswith(f"recipe.data.path: {copy} is not there; copy it there, or mount")
    shutil.copytree(digits, copy)
    assert problems_here(None, facts) == []
    with (copy / "val.beton").open("ab") as file:
        file.write(b"more")
    [said] = problems_here(None, facts)
    assert said.startswith(f"recipe.data.path: {copy} holds another data set")
