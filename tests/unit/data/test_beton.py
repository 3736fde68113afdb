"""The .beton format against FFCV's own reader and writer, damaged files, and the import of FFCV."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seal_ray.data.beton import BetonFile, import_ffcv, write
from seal_ray.errors import ConfigError, DataError
from tests.unit.conftest import smooth_images

ROOT = Path(__file__).parents[3]
N, SIZE = 400, 64  # enough for several pages of 2 MiB


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(-(2**62), 2**62, N)


@pytest.fixture(scope="module")
def raw(images: np.ndarray, labels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("beton") / "raw.beton"
    write(path, zip(images, labels, strict=True), count=N, size=SIZE, jpeg=False)
    return path


def test_importing_ffcv_leaves_numba_and_the_threads_of_torch_alone():
    script = """
import numba.typed, torch
torch.set_num_threads(2)
compiled = numba.typed.Dict
from seal_ray.data.beton import import_ffcv
ffcv = import_ffcv()
assert numba.typed.Dict is compiled
assert torch.get_num_threads() == 2
ffcv.pipeline.compiler.Compiler.set_num_threads(1)
assert (torch.get_num_threads(), numba.get_num_threads()) == (2, 1)
assert dict(ffcv.fields.rgb_image.IMAGE_MODES) == {"jpg": 0, "raw": 1}
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_ffcv_is_explained(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(ConfigError, match=r"libopencv-dev.*pip install ffcv.*placement.loader=torch"):
        import_ffcv()


def test_a_written_file_reads_back_in_any_order(raw: Path, images: np.ndarray, labels: np.ndarray):
    file = BetonFile.open(raw)
    assert (file.labels == labels).all()
    assert (file.height, file.width, file.jpeg) == (SIZE, SIZE, False)
    for indices in (np.random.default_rng(2).permutation(N), np.array([7, 7, 0]), np.array([], dtype=int)):
        assert (file.pixels(indices) == images[indices]).all()
        assert file.pixels(indices).shape == (len(indices), SIZE, SIZE, 3)


def test_ffcv_reads_the_same_structure(raw: Path, labels: np.ndarray):
    file, reader = BetonFile.open(raw), import_ffcv().reader.Reader(str(raw))
    assert reader.field_names == ["image", "label"]
    assert (reader.metadata["f1"] == labels).all()
    assert (reader.metadata["f0"]["data_ptr"] == file.pointers).all()


@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_files_of_ffcvs_writer_with_several_workers_are_read(tmp_path: Path, mode: str):
    ffcv = import_ffcv()
    images = smooth_images(N, SIZE, seed=3)
    fields = {"image": ffcv.fields.RGBImageField(write_mode=mode), "label": ffcv.fields.IntField()}
    writer = ffcv.writer.DatasetWriter(str(tmp_path / "f.beton"), fields, page_size=1 << 21, num_workers=2)
    writer.from_indexed_dataset([(image, i) for i, image in enumerate(images)], chunksize=10)
    file = BetonFile.open(tmp_path / "f.beton")
    assert file.labels.tolist() == list(range(N))
    error = np.abs(file.pixels(np.arange(N)).astype(int) - images)
    assert error.max() == 0 if mode == "raw" else 0 < error.mean() < 3


def test_equal_samples_give_equal_bytes(raw: Path, images: np.ndarray, labels: np.ndarray, tmp_path: Path):
    write(tmp_path / "b.beton", zip(images, labels, strict=True), count=N, size=SIZE, jpeg=False)
    assert (tmp_path / "b.beton").read_bytes() == raw.read_bytes()


def test_images_larger_than_a_page_are_written(tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (3, 900, 900, 3), dtype=np.uint8)
    write(tmp_path / "b.beton", zip(images, range(3), strict=True), count=3, size=900, jpeg=False)
    assert (BetonFile.open(tmp_path / "b.beton").pixels([2, 0, 1]) == images[[2, 0, 1]]).all()


def test_an_error_while_samples_are_read_surfaces_at_once(images: np.ndarray, tmp_path: Path):
    def failing() -> Iterator[tuple[np.ndarray, int]]:
        yield images[0], 0
        raise DataError("image 1 is broken")

    with pytest.raises(DataError, match="image 1 is broken"):
        write(tmp_path / "b.beton", failing(), count=2, size=SIZE, jpeg=False)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keep=st.one_of(st.floats(0, 1, exclude_max=True), st.integers(-30, -1)))
def test_a_truncated_file_is_refused(raw: Path, tmp_path: Path, keep: float):
    whole = raw.read_bytes()
    (tmp_path / "t.beton").write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(DataError, match=r"t.beton (is damaged|cannot be read).*prepare the data set again"):
        BetonFile.open(tmp_path / "t.beton")


# Where a little-endian number lies in a file of two fields, as ffcv/types.py defines it.
FIRST_ROW = 24 + 2 * 1041
ALTERATIONS = {
    "version": (0, 2, 3, "format version 3, not 2"),
    "number of fields": (2, 2, 1, "its fields are"),
    "page size": (4, 4, 0, "its pages do not lie"),
    "number of samples": (8, 8, N - 1, "does not end with its allocation table"),
    "far too many samples": (8, 8, 2**60, "ends too early"),
    "start of the table": (16, 8, 2**63, "ends too early"),
    "type of a field": (24, 1, 4, "its fields are"),
    "mode of an image": (FIRST_ROW, 1, 0, "differ in mode"),
    "width of an image": (FIRST_ROW + 1, 2, 63, "differ in width"),
    "pointer of an image": (FIRST_ROW + 5, 8, 2**63, "table and its metadata disagree"),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_a_file_with_an_altered_structure_is_refused(raw: Path, tmp_path: Path, name: str):
    at, size, value, message = ALTERATIONS[name]
    content = bytearray(raw.read_bytes())
    content[at : at + size] = value.to_bytes(size, "little")
    (tmp_path / "a.beton").write_bytes(content)
    with pytest.raises(DataError, match=f"a.beton is damaged: .*{message}"):
        BetonFile.open(tmp_path / "a.beton")


@pytest.mark.parametrize("pointer", [0, 100, 2**63, 2**64 - 1, -12288])
def test_an_image_outside_the_pages_is_refused(raw: Path, tmp_path: Path, pointer: int):
    """Metadata and allocation table agree, but both point outside the pages."""
    content = bytearray(raw.read_bytes())
    table = int.from_bytes(content[16:24], "little")
    value = (pointer if pointer >= 0 else table + 1 + pointer).to_bytes(8, "little")
    content[FIRST_ROW + 5 : FIRST_ROW + 13] = value
    content[table + 8 : table + 16] = value
    (tmp_path / "a.beton").write_bytes(content)
    with pytest.raises(DataError, match="an image lies outside its pages"):
        BetonFile.open(tmp_path / "a.beton")


@pytest.mark.parametrize(
    ("size", "message"),
    [(1, "neither raw pixels"), (2**63, "outside its pages"), (2**64 - 1, "outside its pages")],
)
def test_a_size_that_is_not_the_images_own_is_refused(raw: Path, tmp_path: Path, size: int, message: str):
    content = bytearray(raw.read_bytes())
    table = int.from_bytes(content[16:24], "little")
    content[table + 16 : table + 24] = size.to_bytes(8, "little")
    (tmp_path / "a.beton").write_bytes(content)
    with pytest.raises(DataError, match=message):
        BetonFile.open(tmp_path / "a.beton")


def test_a_page_that_was_not_written_whole_is_refused(raw: Path, tmp_path: Path):
    """As a full disk leaves it: the padding of the last page is cut, and the table follows."""
    content = bytearray(raw.read_bytes())
    table = int.from_bytes(content[16:24], "little")
    assert not any(content[table - 100 : table])
    del content[table - 100 : table]
    content[16:24] = (table - 100).to_bytes(8, "little")
    (tmp_path / "a.beton").write_bytes(content)
    with pytest.raises(DataError, match="its pages do not lie"):
        BetonFile.open(tmp_path / "a.beton")


def test_a_damaged_jpeg_is_named(tmp_path: Path):
    images = smooth_images(2, SIZE, seed=0)
    write(tmp_path / "j.beton", zip(images, (0, 1), strict=True), count=2, size=SIZE, jpeg=True)
    start = int(BetonFile.open(tmp_path / "j.beton").pointers[1])
    with (tmp_path / "j.beton").open("r+b") as file:
        file.seek(start)
        file.write(b"\0\0\0\0")
    damaged = BetonFile.open(tmp_path / "j.beton")
    assert damaged.pixels([0]).shape == (1, SIZE, SIZE, 3)
    with pytest.raises(DataError, match=r"j.beton is damaged: image 1"):
        damaged.pixels([0, 1])
