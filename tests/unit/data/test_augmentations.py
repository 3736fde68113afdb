"""Augmentations against torchvision's functions of single images, NumPy, and arithmetic by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from seal_ray.augmentations import AUGMENTATIONS, Augmentation
from seal_ray.augmentations.colour import ColourJitter
from seal_ray.augmentations.mixing import Cutmix, Cutout, Mixup
from seal_ray.augmentations.randaugment import CHANGES, RandAugment
from seal_ray.streams import stream

SIZE = (19, 16)
LINEAR = InterpolationMode.BILINEAR


def photos(count: int = 6) -> Tensor:
    """Images with smooth parts, edges, a flat one and one of two values."""
    rng = np.random.default_rng(0)
    images = rng.uniform(0.1, 0.8, (count, 3, *SIZE)).cumsum(axis=3) % 1
    images[1] = 0.4
    images[2] = np.where(images[2] > 0.5, 0.9, 0.2)
    return torch.from_numpy(images).float()


def affine(image: Tensor, **given: Any) -> Tensor:
    settings = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "interpolation": LINEAR}
    return tv.affine(image, **{**settings, **given})


def sheared(*signs: int) -> Callable[[Tensor, float], Tensor]:
    return lambda image, v: affine(
        image, shear=[s * math.degrees(math.atan(0.3 * v)) for s in signs], center=[0, 0]
    )


SINGLE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda image, v: image,
    "shear_x": sheared(1, 0),
    "shear_y": sheared(0, 1),
    "translate_x": lambda image, v: affine(image, translate=[int(150 / 331 * SIZE[1] * v), 0]),
    "translate_y": lambda image, v: affine(image, translate=[0, int(150 / 331 * SIZE[0] * v)]),
    "rotate": lambda image, v: tv.rotate(image, 30 * v, interpolation=LINEAR),
    "brightness": lambda image, v: tv.adjust_brightness(image, 1 + 0.9 * v),
    "saturation": lambda image, v: tv.adjust_saturation(image, 1 + 0.9 * v),
    "contrast": lambda image, v: tv.adjust_contrast(image, 1 + 0.9 * v),
    "sharpness": lambda image, v: tv.adjust_sharpness(image, 1 + 0.9 * v),
    "posterize": lambda image, v: tv.posterize(image, 8 - round(4 * abs(v))),
    "solarize": lambda image, v: tv.solarize(image, 1 - abs(v)),
    "autocontrast": lambda image, v: tv.autocontrast(image),
    "equalize": lambda image, v: tv.equalize(image),
}
"""torchvision's change of one image, at a strength of 0 to 1 and its direction."""


@pytest.mark.parametrize("magnitude", [4, 15, 30])
@pytest.mark.parametrize("name", CHANGES)
def test_each_change_of_randaugment_is_torchvisions(name: str, magnitude: int) -> None:
    images, sign = photos(), torch.tensor([1.0, -1, 1, -1, 1, -1])
    chosen = torch.full((1, 6), CHANGES.index(name))
    found = RandAugment(ops=1, magnitude=magnitude).apply(images, (chosen, sign[None]))
    expected = [
        SINGLE[name](image, magnitude / 30 * s) for image, s in zip(images, sign.tolist(), strict=True)
    ]
    # Where equalize has nothing to do, torchvision rounds to 256 levels all the same.
    tolerance = 0.51 / 255 if name == "equalize" else 2e-5
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=tolerance)


def test_randaugment_changes_each_image_in_turn_by_what_was_drawn() -> None:
    images, augmentation = photos(60), RandAugment(ops=3, magnitude=12)
    chosen, sign = augmentation.draw(60, SIZE, stream(0, "x"))
    found = augmentation.apply(images, (chosen, sign))
    for i, image in enumerate(images):
        for op, direction in zip(chosen[:, i], sign[:, i], strict=True):
            image = SINGLE[CHANGES[op]](image, 0.4 * float(direction))
        # Rounding may put a value on the other side of a threshold or level, and move what is equalized.
        assert (found[i] - image).abs().gt(0.01).float().mean() < 0.02, [CHANGES[op] for op in chosen[:, i]]


def test_colour_jitter_is_torchvisions_four_changes() -> None:
    images, jitter = photos(), ColourJitter(0.5, 0.6, 0.7, 0.3)
    (factors,) = jitter.draw(6, SIZE, stream(0, "x"))
    found = jitter.apply(images, (factors,))
    for image, (bright, contrast, saturation, hue), ours in zip(
        images, factors.T.tolist(), found, strict=True
    ):
        expected = tv.adjust_contrast(tv.adjust_brightness(image, bright), contrast)
        expected = tv.adjust_hue(tv.adjust_saturation(expected, saturation), hue)
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)
    assert torch.equal(ColourJitter(0, 0, 0, 0).apply(images, (factors,)), images)


def test_the_draws_of_colour_jitter_are_uniform_within_their_amounts() -> None:
    (factors,) = ColourJitter(0.5, 0.25, 1.0, 0.1).draw(4000, SIZE, stream(0, "x"))
    for drawn, low, high in zip(factors, (0.5, 0.75, 0, -0.1), (1.5, 1.25, 2, 0.1), strict=True):
        assert stats.kstest(drawn.numpy(), stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_cutout_by_hand() -> None:
    images, cutout = photos(200), Cutout(length=5)
    (box,) = cutout.draw(200, SIZE, stream(0, "x"))
    found = cutout.apply(images, (box,)).numpy()
    expected = images.numpy().copy()
    for image, (top, left, bottom, right) in zip(expected, box.tolist(), strict=True):
        assert (bottom - top, right - left) == (5, 5)
        image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = 0
    np.testing.assert_array_equal(found, expected)
    for axis, extent in enumerate(SIZE):  # every pixel may be the centre
        assert sorted({int(first) + 2 for first in box[:, axis]}) == list(range(extent))


def test_mixup_by_hand() -> None:
    images, targets = photos(3), torch.eye(4)[[2, 0, 3]]
    drawn = torch.tensor([1, 2, 0]), torch.tensor([0.75, 1.0, 0.25], dtype=torch.float64)
    found = Mixup().apply(images, drawn)
    torch.testing.assert_close(found[0], 0.75 * images[0] + 0.25 * images[1])
    assert torch.equal(found[1], images[1])
    torch.testing.assert_close(found[2], 0.25 * images[2] + 0.75 * images[0])
    mixed = Mixup().mix(targets, drawn)
    assert mixed.tolist() == [[0.25, 0, 0.75, 0], [1, 0, 0, 0], [0, 0, 0.75, 0.25]]


def test_cutmix_by_hand() -> None:
    images, targets, cutmix = photos(50), torch.eye(50), Cutmix()
    partner, box, share = cutmix.draw(50, SIZE, stream(0, "x"))
    found, mixed = (f(v, (partner, box, share)) for f, v in ((cutmix.apply, images), (cutmix.mix, targets)))
    expected = images.numpy().copy()
    for i, (top, left, bottom, right) in enumerate(box.tolist()):
        assert 0 <= top <= bottom <= SIZE[0]
        assert 0 <= left <= right <= SIZE[1]
        j, area = int(partner[i]), (bottom - top) * (right - left) / (SIZE[0] * SIZE[1])
        expected[i, :, top:bottom, left:right] = images[j, :, top:bottom, left:right].numpy()
        shares = np.zeros(50)
        shares[i] += 1 - area
        shares[j] += area
        np.testing.assert_allclose(mixed[i], shares, atol=1e-6)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_from_the_beta_distribution_and_partners_an_order(alpha: float) -> None:
    partner, share = Mixup(alpha).draw(4000, SIZE, stream(0, "x"))
    assert partner.sort().values.tolist() == list(range(4000))
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01
    _, box, _ = Cutmix(alpha).draw(4000, (1000, 1000), stream(0, "y"))
    sides = (box[:, 2:] - box[:, :2])[(box[:, :2] > 0).all(dim=1) & (box[:, 2:] < 1000).all(dim=1)]
    assert (sides[:, 0] == sides[:, 1]).all()  # the image's proportions, where nothing is cut off


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_is_a_function_of_its_draws_and_changes_nothing_that_it_is_given(name: str) -> None:
    augmentation: Augmentation = AUGMENTATIONS[name]()
    images = photos()
    before, drawn = images.clone(), augmentation.draw(6, SIZE, stream(0, "x"))
    again = augmentation.draw(6, SIZE, stream(0, "x"))
    assert all(torch.equal(one, other) for one, other in zip(drawn, again, strict=True))
    found = augmentation.apply(images, drawn)
    assert torch.equal(found, augmentation.apply(images.clone(), drawn))
    assert torch.equal(images, before)
    assert not torch.equal(found, images)
    assert (found.shape, found.dtype) == (images.shape, images.dtype)
    assert found.min() >= 0
    assert found.max() <= 1
