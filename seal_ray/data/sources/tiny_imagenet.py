"""Tiny ImageNet from its official zip archive or the folder it was extracted to.

Source: the class project data set of Stanford CS231n. 200 classes, 500 training and 50 validation images of
64 x 64 pixels each; a selection of the classes in the same layout is read as well.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from seal_ray.data.dataset import ClassName, Pixels, Sample, Source, decode
from seal_ray.data.sources.archives import Tree, natural_key, open_tree
from seal_ray.data.sources.registry import source
from seal_ray.errors import DataError

# The statistics of ImageNet, which published results on Tiny ImageNet normalise by.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

TRAIN_IMAGE = re.compile(r"train/([^/]+)/images/[^/]+\.JPEG")
VAL_IMAGE = re.compile(r"val/images/([^/]+\.JPEG)")
ANNOTATIONS = "val/val_annotations.txt"


@source(
    "tiny-imagenet",
    needs=("tiny-imagenet-200.zip",),
    address="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    licence_note=(
        "Images of ImageNet, for non-commercial research and education only; "
        "the rights stay with their owners. Do not redistribute."
    ),
    classes=200,
    images=110_000,
    train=100_000,
)
def tiny_imagenet(path: Path) -> Source:
    """Read Tiny ImageNet from `path`, a zip archive or a folder.

    Labels follow the order of wnids.txt, validation labels come from val_annotations.txt, and the images of
    a class, and of val, are in natural order of their names. Raises DataError that names what is missing or
    does not fit together.
    """
    tree = open_tree(path, "wnids.txt")
    wnids = [line.strip() for _, line in _lines(tree, "wnids.txt")]
    if not wnids or len(set(wnids)) < len(wnids):
        raise DataError(f"wnids.txt in {tree.where} is empty or lists a class twice")
    words = dict(_pairs(tree, "words.txt"))
    return Source(
        classes=tuple(ClassName(wnid, words.get(wnid, wnid)) for wnid in wnids),
        train=_train(tree, wnids),
        val=_val(tree, {wnid: label for label, wnid in enumerate(wnids)}),
        size=64,
        mean=MEAN,
        std=STD,
    )


def _train(tree: Tree, wnids: list[str]) -> list[Sample]:
    images: defaultdict[str, list[str]] = defaultdict(list)
    for name in tree.names:
        if match := TRAIN_IMAGE.fullmatch(name):
            images[match.group(1)].append(name)
    if missing := [wnid for wnid in wnids if wnid not in images]:
        raise DataError(
            f"train/{missing[0]}/images in {tree.where} is missing or has no .JPEG file, "
            f"though wnids.txt lists the class{_more(missing)}"
        )
    if unlisted := sorted(images.keys() - set(wnids)):
        raise DataError(
            f"train/{unlisted[0]} in {tree.where} is a class that wnids.txt does not list{_more(unlisted)}"
        )
    return [
        _sample(tree, name, label)
        for label, wnid in enumerate(wnids)
        for name in sorted(images[wnid], key=natural_key)
    ]


def _val(tree: Tree, labels: Mapping[str, int]) -> list[Sample]:
    images = {match.group(1) for name in tree.names if (match := VAL_IMAGE.fullmatch(name))}
    annotated: dict[str, int] = {}
    for image, wnid in _pairs(tree, ANNOTATIONS):
        if wnid not in labels:
            raise DataError(
                f"{ANNOTATIONS} in {tree.where} gives {image} the class {wnid}, which wnids.txt does not list"
            )
        if annotated.setdefault(image, labels[wnid]) != labels[wnid]:
            raise DataError(f"{ANNOTATIONS} in {tree.where} gives {image} two classes")
    if absent := sorted(annotated.keys() - images, key=natural_key):
        raise DataError(
            f"val/images/{absent[0]} is missing in {tree.where}, though {ANNOTATIONS} lists it{_more(absent)}"
        )
    if unlabelled := sorted(images - annotated.keys(), key=natural_key):
        raise DataError(
            f"val/images/{unlabelled[0]} in {tree.where} has no line in {ANNOTATIONS}{_more(unlabelled)}"
        )
    ordered = sorted(images, key=natural_key)
    return [_sample(tree, f"val/images/{image}", annotated[image]) for image in ordered]


def _sample(tree: Tree, name: str, label: int) -> Sample:
    return Sample(partial(_read, tree, name), label, name)


def _read(tree: Tree, name: str) -> Pixels:
    return np.asarray(decode(tree.read(name), f"{name} in {tree.where}"))


def _pairs(tree: Tree, name: str) -> Iterator[tuple[str, str]]:
    """Yield the first two tab-separated columns of each line of a text file."""
    for number, line in _lines(tree, name):
        columns = line.strip().split("\t")
        if len(columns) < 2:
            raise DataError(f"{name} in {tree.where}, line {number}: two columns are needed, not {line!r}")
        yield columns[0], columns[1]


def _lines(tree: Tree, name: str) -> list[tuple[int, str]]:
    """List the lines of a text file that are not blank, with their numbers from 1."""
    if name not in tree.names:
        raise DataError(f"{tree.where} has no {name}; get the official archive")
    try:
        lines = tree.read(name).decode().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{name} in {tree.where} is not UTF-8 text ({error})") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
