"""Crop, flip and normalisation against one image at a time in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seal_ray.data.augment import Crop, Draws, Normaliser, draw, normalise
from seal_ray.data.images import TrainingImages
from seal_ray.data.loaders import ArrayLoader
from seal_ray.recipe import Augment
from seal_ray.streams import stream
from tests.runs import tiny_images

CPU = torch.device("cpu")


def crop_and_flip(images: torch.Tensor, draws: Draws, *, padding: int) -> torch.Tensor:
    """Each image at the place in the batch that it has among the draws."""
    crop = Crop.of((images.shape[1], images.shape[2]), padding, CPU)
    return crop(images, crop.places(draws, torch.arange(len(images))))


def photos(count: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def plain(image: np.ndarray, top: int, left: int, flip: bool, padding: int) -> np.ndarray:
    """Pad one image with black, cut its own size out of it, mirror it."""
    h, w, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    cut = padded[top : top + h, left : left + w]
    return cut[:, ::-1] if flip else cut


@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    padding=st.integers(0, 5),
    count=st.integers(1, 5),
    seed=st.integers(0, 9),
    flip=st.booleans(),
)
def test_crop_and_flip_of_a_batch_is_that_of_each_image(
    height: int, width: int, padding: int, count: int, seed: int, flip: bool
) -> None:
    images = photos(count, height, width)
    draws = draw(count, padding=padding, flip=flip, generator=stream(seed, "augment"))
    found = crop_and_flip(torch.from_numpy(images), draws, padding=padding)
    assert found.dtype == torch.uint8
    places = zip(draws.top.tolist(), draws.left.tolist(), draws.flip.tolist(), strict=True)
    expected = [plain(image, *place, padding) for image, place in zip(images, places, strict=True)]
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


def test_every_offset_of_an_image_by_hand() -> None:
    image = torch.arange(1, 5, dtype=torch.uint8).view(1, 2, 2, 1)
    for (top, left, flip), expected in {
        (0, 0, False): [[0, 0], [0, 1]],
        (1, 1, False): [[1, 2], [3, 4]],
        (1, 1, True): [[2, 1], [4, 3]],
        (2, 1, False): [[3, 4], [0, 0]],
        (1, 2, True): [[0, 2], [0, 4]],
    }.items():
        draws = Draws(torch.tensor([top]), torch.tensor([left]), torch.tensor([flip]))
        assert crop_and_flip(image, draws, padding=1).view(2, 2).tolist() == expected


def test_the_batch_that_went_in_is_left_alone() -> None:
    images = torch.from_numpy(photos(4, 6, 6))
    before = images.clone()
    crop_and_flip(images, draw(4, padding=0, flip=True, generator=stream(0, "x")), padding=0)
    crop_and_flip(images, draw(4, padding=2, flip=True, generator=stream(0, "x")), padding=2)
    assert torch.equal(images, before)


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_draws_are_uniform_and_flips_fair(padding: int, flip: bool) -> None:
    draws = draw(20_000, padding=padding, flip=flip, generator=stream(0, "augment", 1, 2))
    bins = 2 * padding + 1
    for offsets in (draws.top, draws.left):
        counts = np.bincount(offsets.numpy(), minlength=bins)
        assert len(counts) == bins
        assert abs(counts / 20_000 - 1 / bins).max() < 0.015
    assert draws.flip.float().mean().item() == pytest.approx(0.5 if flip else 0.0, abs=0.015)
    if padding and flip:
        together = np.corrcoef([draws.top.numpy(), draws.left.numpy(), draws.flip.numpy() + 0.0])
        assert abs(together - np.eye(3)).max() < 0.03


def test_turning_flips_off_leaves_the_crops_as_they_were() -> None:
    with_flips, without = (draw(50, padding=3, flip=f, generator=stream(0, "x")) for f in (True, False))
    assert torch.equal(with_flips.top, without.top)
    assert torch.equal(with_flips.left, without.left)


def test_draws_belong_to_images_and_not_to_places_in_the_order() -> None:
    draws = draw(9, padding=3, flip=True, generator=stream(0, "augment"))
    images = torch.from_numpy(photos(9, 5, 5))
    order = torch.tensor([4, 8, 0, 4, 7])
    whole = crop_and_flip(images, draws, padding=3)
    crop = Crop.of((5, 5), 3, CPU)
    assert torch.equal(crop(images[order], crop.places(draws, order)), whole[order])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(3, 8, 5, 3), (1, 1, 1, 3), (2, 64, 64, 3), (2, 4, 4, 1)])
def test_normalising_is_that_of_float64(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    images = photos(*shape)
    mean, std = (0.485, 0.456, 0.406)[: shape[3]], (0.229, 0.224, 0.225)[: shape[3]]
    found = normalise(torch.from_numpy(images), mean, std, memory_format)
    expected = ((images / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=memory_format)
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=1e-6)


def test_both_memory_formats_hold_the_same_numbers() -> None:
    images = torch.from_numpy(photos(3, 6, 7))
    one, two = (
        normalise(images, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), f)
        for f in (torch.contiguous_format, torch.channels_last)
    )
    assert torch.equal(one, two)
    assert one.stride() != two.stride()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_epoch_is_padded_cropped_flipped_and_normalised_in_that_order(workers: int) -> None:
    images = tiny_images()
    loader = images.open("train", 6)
    assert isinstance(loader, ArrayLoader)
    order = np.random.default_rng(1).permutation(30)[:24].reshape(4, 2, 3)
    draws = draw(30, padding=2, flip=True, generator=stream(0, "augment", 1, 2))
    normaliser = Normaliser.of(
        images.mean,
        images.std,
        width=images.size[1],
        memory_format=torch.channels_last,
        dtype=torch.float32,
        device=CPU,
    )
    per_worker = []
    for rank in range(workers):
        shards = 2 // workers
        own = TrainingImages.of(
            images,
            images.open("train", 3 * shards),
            loader.labels,
            Augment(crop_padding=2),
            normaliser,
            shards=shards,
            device=CPU,
        )
        batches = own.epoch(order[:, rank::workers][:, :shards], stream(0, "augment", 1, 2))
        per_worker.append([own.augmented(batch) for batch in batches])
    for step in range(4):
        shards = [shard for epoch in per_worker for shard in epoch[step]]
        for (x, y, _), indices in zip(shards, order[step], strict=True):
            assert y.tolist() == loader.labels[indices].tolist()
            for pixels, i in zip(x, indices, strict=True):
                cut = plain(loader.images[i], int(draws.top[i]), int(draws.left[i]), bool(draws.flip[i]), 2)
                expected = (cut / 255 - images.mean) / images.std
                np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), expected, atol=2e-6)
