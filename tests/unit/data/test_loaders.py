"""Batches come in exactly the order asked for, whichever loader reads them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from seal_ray.data.dataset import Source
from seal_ray.data.loaders import ArrayLoader, FfcvLoader, Loader, ResidentLoader, ahead, open_loader
from seal_ray.data.prepared import Dataset
from seal_ray.errors import DataError

BATCH = 4
KINDS = ("ffcv", "torch", "array", "resident")


@pytest.fixture(scope="module")
def loaders(
    prepared: Callable[[str], Dataset], source: Source, pixels: dict[str, np.ndarray]
) -> dict[str, Loader]:
    """The 23 training images behind each kind of loader, in batches of 4."""
    labels = np.array([sample.label for sample in source.train])
    ffcv = open_loader(prepared("raw"), "train", kind="ffcv", batch_size=BATCH)
    size = pixels["train"].shape[1:3]
    return {
        "ffcv": ffcv,
        "resident": ResidentLoader.filled(ffcv, size, BATCH, torch.device("cpu")),
        "torch": open_loader(prepared("raw"), "train", kind="torch", batch_size=BATCH),
        "array": ArrayLoader(pixels["train"], labels, BATCH),
    }


def ffcv_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if type(thread).__name__ == "EpochIterator"]


rng = np.random.default_rng(0)
ORDERS = {
    "ascending": np.arange(23),
    "shuffled": rng.permutation(23),
    "part": rng.permutation(23)[:9],
    "whole batches": rng.permutation(23)[:8],
    "less than a batch": np.array([22, 3, 0]),
    "one": np.array([5]),
    "none": np.array([], dtype=np.int64),
    "with repeats, longer than the split": rng.integers(0, 23, 57),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_batches_hold_the_images_in_the_order_asked_for(
    loaders: dict[str, Loader], pixels: dict[str, np.ndarray], kind: str, order: np.ndarray
):
    batches = list(loaders[kind].batches(order))
    expected = [pixels["train"][order[i : i + BATCH]] for i in range(0, len(order), BATCH)]
    assert [batch.shape for batch in batches] == [images.shape for images in expected]
    for batch, images in zip(batches, expected, strict=True):
        assert (batch.dtype, batch.device.type, batch.is_contiguous()) == (torch.uint8, "cpu", True)
        assert (batch.numpy() == images).all()


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_those_of_the_source(loaders: dict[str, Loader], source: Source, kind: str):
    assert loaders[kind].labels.tolist() == [sample.label for sample in source.train]
    assert loaders[kind].labels.dtype == np.int64


@pytest.mark.parametrize("kind", KINDS)
def test_an_iterator_may_be_dropped_anywhere(
    loaders: dict[str, Loader], pixels: dict[str, np.ndarray], kind: str
):
    order = np.arange(23)[::-1].copy()
    for taken in range(7):
        batches = loaders[kind].batches(order)
        list(islice(batches, taken))
        del batches
        assert ffcv_threads() == []
        assert (torch.cat(list(loaders[kind].batches(order))).numpy() == pixels["train"][order]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_two_iterators_at_once_do_not_disturb_each_other(
    loaders: dict[str, Loader], pixels: dict[str, np.ndarray], kind: str
):
    there, back = np.arange(23), np.arange(23)[::-1].copy()
    pairs = list(zip(loaders[kind].batches(there), loaders[kind].batches(back), strict=True))
    for order, batches in zip((there, back), zip(*pairs, strict=True), strict=True):
        assert (torch.cat(batches).numpy() == pixels["train"][order]).all()


def test_batches_made_ahead_on_a_thread_are_the_same_and_may_be_dropped(
    loaders: dict[str, Loader], pixels: dict[str, np.ndarray]
):
    order = np.arange(23)[::-1].copy()
    for taken in range(7):
        dropped = ahead(loaders["ffcv"].batches(order), 2)
        list(islice(dropped, taken))
        del dropped
        assert ffcv_threads() == []
    found = list(ahead(loaders["ffcv"].batches(order), 2))
    assert (torch.cat(found).numpy() == pixels["train"][order]).all()


def test_what_is_made_ahead_is_so_many_at_most_and_an_error_comes_in_its_turn():
    made = []

    def items() -> Iterator[int]:
        for i in range(4):
            made.append(i)
            yield i
        raise DataError("torn")

    coming = ahead(items(), 2)
    assert next(coming) == 0
    assert len(made) <= 3
    assert list(islice(coming, 3)) == [1, 2, 3]
    with pytest.raises(DataError, match="torn"):
        next(coming)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [[23], [-1], [0, 99, 1], [[0], [1]], [0.0, 1.0]])
def test_an_order_that_is_none_is_refused(loaders: dict[str, Loader], kind: str, order: list[object]):
    with pytest.raises(IndexError, match="order"):
        loaders[kind].batches(np.array(order))


@pytest.mark.parametrize("kind", ["ffcv", "torch"])
def test_jpeg_batches_are_close_to_the_source(
    prepared: Callable[[str], Dataset], pixels: dict[str, np.ndarray], kind: str
):
    loader = open_loader(prepared("jpeg"), "val", kind=kind, batch_size=3)  # type: ignore[arg-type]
    order = np.array([6, 0, 3, 3, 1])
    found = torch.cat(list(loader.batches(order))).numpy()
    error = np.abs(found.astype(int) - pixels["val"][order])
    assert 0 < error.mean() < 2.5


def test_ffcv_does_not_set_the_threads_of_torch(loaders: dict[str, Loader]):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        seen = [torch.get_num_threads() for _ in loaders["ffcv"].batches(np.arange(23))]
        assert [*seen, torch.get_num_threads()] == [2] * 7
    finally:
        torch.set_num_threads(before)


def test_a_file_other_than_described_is_refused(prepared: Callable[[str], Dataset]):
    dataset = prepared("raw")
    swapped = {"train": dataset.splits["val"], "val": replace(dataset.splits["val"], count=8)}
    with pytest.raises(DataError, match=r"val.beton is not what dataset.json describes"):
        open_loader(replace(dataset, splits=swapped), "val", kind="torch", batch_size=BATCH)
    with pytest.raises(DataError, match=r"train.beton is not what dataset.json describes"):
        open_loader(replace(dataset, size=8), "train", kind="ffcv", batch_size=BATCH)


def test_ffcv_compiles_its_code_once_for_a_file_which_two_may_read_at_once(
    prepared: Callable[[str], Dataset], pixels: dict[str, np.ndarray]
):
    one, other = (open_loader(prepared("raw"), "train", kind="ffcv", batch_size=BATCH) for _ in range(2))
    assert isinstance(one, FfcvLoader)
    assert isinstance(other, FfcvLoader)
    assert one.ffcv is other.ffcv
    up, down = np.arange(23), np.arange(23)[::-1]
    read = list(zip(one.batches(up), other.batches(down), strict=True))
    assert (torch.cat([first for first, _ in read]).numpy() == pixels["train"][up]).all()
    assert (torch.cat([second for _, second in read]).numpy() == pixels["train"][down]).all()
    val = open_loader(prepared("raw"), "val", kind="ffcv", batch_size=BATCH)
    assert isinstance(val, FfcvLoader)
    assert val.ffcv is not one.ffcv


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_in_ffcvs_thread_does_not_hang(
    prepared: Callable[[str], Dataset], monkeypatch: pytest.MonkeyPatch
):
    loader = open_loader(prepared("raw"), "train", kind="ffcv", batch_size=BATCH)
    assert isinstance(loader, FfcvLoader)

    def fail(**_: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(loader.ffcv, "code", ([(fail, [])], []))
    with pytest.raises(RuntimeError, match="FFCV's reading thread died"):
        next(loader.batches(np.arange(23)))
