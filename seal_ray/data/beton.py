"""The .beton files of a data set, written with FFCV and read with or without it.

Such a file holds a field "image" (RGB, all of one size, raw pixels or JPEG) and a field "label" (int64).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from seal_ray.data.dataset import Labels, Pixels
from seal_ray.errors import ConfigError, DataError

JPEG_QUALITY = 95
SMALLEST_PAGE = 1 << 21  # bytes; FFCV's lower limit

# The format's version 2, little-endian (ffcv/types.py): a header; one descriptor a field; one row of metadata
# a sample; pages of data from the next multiple of the page size on; the allocation table to the end.
VERSION = 2
HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
DESCRIPTOR = np.dtype([("type", "<u1"), ("name", "S16"), ("arguments", "<u1", 1024)])
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
ROW = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
FIELDS = [(2, b"image"), (1, b"label")]
JPEG, RAW = 0, 1  # modes of an image


def import_ffcv() -> ModuleType:
    """Import FFCV in a fraction of its usual seconds, and keep it from setting PyTorch's thread count.

    Nearly all of the usual time is the compilation of one typed dictionary of two entries, which plain Python
    code reads: a plain dictionary takes its place. FFCV also sets PyTorch's intra-op threads to the number of
    its own whenever an epoch starts, and from another thread; since that number decides the bits of a result,
    only Numba's is left to it. Raises ConfigError when FFCV or a system library it needs is missing.
    """
    import torch

    threads = torch.get_num_threads()
    try:
        import numba.typed

        compiled = numba.typed.Dict
        numba.typed.Dict = dict
        try:
            import ffcv
            import ffcv.transforms
        finally:
            numba.typed.Dict = compiled
            torch.set_num_threads(threads)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"FFCV cannot be imported ({error}). Install libopencv-dev, libturbojpeg0-dev and pkg-config, "
            "then run pip install ffcv; to train without it set placement.loader=torch"
        ) from error
    ffcv.pipeline.compiler.Compiler.set_num_threads = classmethod(_set_numba_threads)
    module: ModuleType = ffcv
    return module


def _set_numba_threads(compiler: Any, threads: int) -> None:
    import numba

    compiler.num_threads = threads
    numba.set_num_threads(threads)


def write(path: Path, samples: Iterable[tuple[Pixels, int]], *, count: int, size: int, jpeg: bool) -> None:
    """Write `count` samples of (size, size, 3) uint8 pixels and their labels as a .beton file.

    FFCV's own fields, allocator and writer are used, but in this process: its worker processes wait for ever
    for one that failed, and give other bytes on each run. Here an error of `samples` or of the disk surfaces
    at once and equal samples give equal bytes. Raises DataError when the disk took only part of the file.
    """
    ffcv = import_ffcv()
    image = ffcv.fields.RGBImageField(write_mode="jpg" if jpeg else "raw", jpeg_quality=JPEG_QUALITY)
    fields = {"image": image, "label": ffcv.fields.IntField()}
    page = max(SMALLEST_PAGE, 1 << math.ceil(math.log2(3 * size * size)))
    writer = ffcv.writer.DatasetWriter(str(path), fields, page_size=page, num_workers=1)
    writer.num_samples = count
    metadata = np.zeros(count, writer.metadata_type)
    writer.prepare()
    try:
        allocator = ffcv.memory_allocator.MemoryAllocator(str(path), writer.data_region_start, page)
        written = 0
        with allocator:
            for sample in samples:
                ffcv.writer.handle_sample(sample, written, metadata.dtype.names, metadata, allocator, fields)
                written += 1
        assert written == count
        writer.metadata_sm.buf[:] = metadata.tobytes()
        writer.finalize(allocator.allocations)
    finally:
        writer.metadata_sm.close()
        writer.metadata_sm.unlink()
    BetonFile.open(path)


@dataclass(frozen=True, eq=False)
class BetonFile:
    """A .beton file mapped into memory and read without FFCV.

    labels: (N,) int64. height, width: pixels of every image. jpeg: how images are stored.
    pointers, sizes: (N,) uint64, where each image's bytes lie in `data`, the bytes of the whole file.
    """

    path: Path
    labels: Labels
    height: int
    width: int
    jpeg: bool
    pointers: npt.NDArray[np.uint64]
    sizes: npt.NDArray[np.uint64]
    data: npt.NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path) -> BetonFile:
        """Map the file at `path`; raises DataError when it is missing or its structure is damaged."""
        try:
            data = np.memmap(path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); prepare the data set again") from error
        try:
            return _parse(path, data)
        except _StructureError as error:
            raise DataError(f"{path} is damaged: {error}; prepare the data set again") from error

    def pixels(self, indices: npt.ArrayLike) -> Pixels:
        """Copy the images at `indices` (n,) to (n, height, width, 3) uint8 RGB."""
        picked = np.asarray(indices)
        shape = (len(picked), self.height, self.width, 3)
        if self.jpeg:
            images = [self._decoded(index) for index in picked]
            return np.stack(images) if images else np.empty(shape, dtype=np.uint8)
        size = self.height * self.width * 3
        # One overlapping item at every byte of the file, so that a single gather copies whole images.
        items = np.ndarray((len(self.data) - size + 1,), dtype=f"V{size}", buffer=self.data, strides=(1,))
        gathered: Pixels = items[self.pointers[picked]].view(np.uint8)
        return gathered.reshape(shape)

    def _decoded(self, index: int) -> Pixels:
        start = int(self.pointers[index])
        encoded = self.data[start : start + int(self.sizes[index])].tobytes()
        try:
            with Image.open(io.BytesIO(encoded), formats=["JPEG"]) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{self.path} is damaged: image {index}: {error}; prepare it again") from error
        if pixels.shape != (self.height, self.width, 3):
            raise DataError(f"{self.path} is damaged: image {index} has another size; prepare it again")
        return pixels


class _StructureError(Exception):
    """What about a file's structure is wrong; becomes a DataError that names the file."""


def _parse(path: Path, data: npt.NDArray[np.uint8]) -> BetonFile:
    header = _array(data, HEADER, 1, 0)[0]
    if header["version"] != VERSION:
        raise _StructureError(f"format version {header['version']}, not {VERSION}")
    descriptors = _array(data, DESCRIPTOR, int(header["fields"]), HEADER.itemsize)
    fields = list(zip(descriptors["type"].tolist(), descriptors["name"].tolist(), strict=True))
    if fields != FIELDS:
        raise _StructureError(f"its fields are {fields}, not {FIELDS}")
    count, page, table_start = (int(header[name]) for name in ("samples", "page", "table"))
    first_row = HEADER.itemsize + descriptors.nbytes
    rows = _array(data, ROW, count, first_row)
    table = _array(data, ALLOCATION, count, table_start)
    if table_start + table.nbytes != len(data):
        raise _StructureError("it does not end with its allocation table")
    if count == 0 or page == 0 or table_start % page or table_start < first_row + rows.nbytes:
        raise _StructureError("its pages do not lie between its metadata and its allocation table")
    images = rows["image"]
    sizes = _sizes(images, table, count)
    starts = images["pointer"]
    # In this order, because the subtraction wraps around for a start behind the pages.
    if ((starts < first_row + rows.nbytes) | (starts > table_start) | (sizes > table_start - starts)).any():
        raise _StructureError("an image lies outside its pages")
    mode, height, width = (_single(images[name], name) for name in ("mode", "height", "width"))
    if mode not in (JPEG, RAW) or (mode == RAW and (sizes != height * width * 3).any()):
        raise _StructureError("its images are neither raw pixels of their size nor JPEG")
    labels = np.ascontiguousarray(rows["label"], dtype=np.int64)
    return BetonFile(path, labels, height, width, mode == JPEG, np.ascontiguousarray(starts), sizes, data)


def _array(data: npt.NDArray[np.uint8], dtype: np.dtype[Any], count: int, offset: int) -> npt.NDArray[Any]:
    if offset + count * dtype.itemsize > len(data):
        raise _StructureError("it ends too early")
    return np.frombuffer(data, dtype, count, offset)


def _sizes(images: npt.NDArray[Any], table: npt.NDArray[Any], count: int) -> npt.NDArray[np.uint64]:
    """Give the bytes of each image. The table lists one allocation a sample, in the order they were made."""
    order = np.argsort(table["sample"], kind="stable")
    if (table["sample"][order] != np.arange(count, dtype=np.uint64)).any():
        raise _StructureError("its allocation table does not list each image once")
    if (table["pointer"][order] != images["pointer"]).any():
        raise _StructureError("its allocation table and its metadata disagree")
    return np.ascontiguousarray(table["size"][order])


def _single(values: npt.NDArray[Any], name: str) -> int:
    if (values != values[0]).any():
        raise _StructureError(f"its images differ in {name}")
    return int(values[0])
