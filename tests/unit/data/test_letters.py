"""The letters that are drawn: as many as are said, alike each time, each its own letter and whole."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from seal_ray.data.dataset import Sample
from seal_ray.data.prepare import prepare
from seal_ray.data.sources import SOURCES, builtin, open_source
from seal_ray.data.sources.builtin import letters
from seal_ray.errors import ConfigError, DataError


def font(sample: Sample) -> str:
    return sample.origin.split("/")[0]


def test_there_are_as_many_as_the_catalogue_says_and_val_has_fonts_of_its_own() -> None:
    source = open_source("letters")
    info = SOURCES["letters"].info
    assert (len(source.train), len(source.val), len(source.classes)) == (info.train, info.val, info.classes)
    assert Counter(sample.label for sample in source.train) == dict.fromkeys(range(26), 64)
    assert Counter(sample.label for sample in source.val) == dict.fromkeys(range(26), 16)
    assert not {font(sample) for sample in source.train} & {font(sample) for sample in source.val}
    assert [name.words for name in source.classes] == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert source.licence_note == info.licence_note
    # Enough for 50 shots and 15 queries of the few-shot protocol.
    assert 64 + 16 >= 50 + 15


def test_a_letter_is_drawn_alike_each_time_and_no_two_are_alike() -> None:
    first, second = letters(), letters()
    chosen = [*first.train[::7], *first.val[::7]]
    again = [*second.train[::7], *second.val[::7]]
    pixels = [sample.read() for sample in chosen]
    assert all(np.array_equal(one, sample.read()) for one, sample in zip(pixels, again, strict=True))
    assert len({one.tobytes() for one in pixels}) == len(pixels)


def test_letters_are_white_on_black_and_whole() -> None:
    for sample in (*letters().train[::5], *letters().val[::5]):
        pixels = sample.read()
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)
        assert (pixels == pixels[..., :1]).all()
        gray = pixels[..., 0]
        assert gray.max() > 200, sample.origin
        assert 0.02 < gray.mean() / 255 < 0.5, sample.origin
        edge = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
        assert edge.sum() < 0.05 * gray.sum(), sample.origin


def test_letters_of_unseen_fonts_are_nearest_to_their_own_class() -> None:
    """To its mean image: far from chance, 1 in 26, so that labels and pixels belong together."""
    source = letters()
    train = np.stack([sample.read()[..., 0] for sample in source.train]).astype(float)
    labels = np.array([sample.label for sample in source.train])
    means = np.stack([train[labels == label].mean(axis=0).ravel() for label in range(26)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    seen = np.stack([sample.read()[..., 0].ravel() for sample in source.val]).astype(float)
    right = (seen @ means.T).argmax(axis=1) == np.array([sample.label for sample in source.val])
    assert right.mean() > 0.4


def test_letters_are_prepared_and_take_no_options(tmp_path: Path) -> None:
    dataset = prepare(open_source("letters"), tmp_path / "letters", classes=3, per_class=2)
    assert (dataset.name, dataset.size, dataset.splits["train"].count) == ("letters", 32, 6)
    assert dataset.mean[0] == dataset.mean[1] == dataset.mean[2]
    with pytest.raises(ConfigError, match="--source does not apply to letters"):
        open_source("letters", source=tmp_path)


def test_a_font_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "VAL_FONTS", ("Papyrus",))
    with pytest.raises(DataError, match=r"Papyrus.ttf is not there, .* install matplotlib again"):
        letters()
