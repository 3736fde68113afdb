"""Tiny ImageNet from its official zip archive or the folder it was extracted to.

Source: the class project data set of Stanford CS231n. 200 classes, 500 training and 50 validation images of
64 x 64 pixels each; a selection of the classes in the same layout is read as well.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from seal_ray.data.dataset import ClassName, Pixels, Sample, Source
from seal_ray.data.image_files import Decoder
from seal_ray.data.sources.archives import Tree, below, find, natural_key, open_files, text_of
from seal_ray.data.sources.registry import source
from seal_ray.errors import DataError

# The statistics of ImageNet, which published results on Tiny ImageNet normalise by.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

TRAIN_IMAGE = re.compile(r"train/([^/]+)/(?:images/)?([^/]+\.jpe?g)", re.IGNORECASE)
VAL_IMAGE = re.compile(r"val/(?:images/|([^/]+)/(?:images/)?)?([^/]+\.jpe?g)", re.IGNORECASE)
ANNOTATIONS = "val/val_annotations.txt"
SEPARATORS = re.compile(r"[\s,;]+")


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
    """Read Tiny ImageNet from `path`, a zip archive or a folder, either of which may hold it at any depth.

    Labels follow the order of wnids.txt; those of val come from val_annotations.txt, or from the class
    folders that scripts sort val into. Images may lie in a folder images/ of their class or not; those of a
    class, and of val, are in natural order of their file names, so that each layout is the same data set.
    Without words.txt the classes are called by their ids. Raises DataError that names what is missing or does
    not fit together.
    """
    tree = _opened(path)
    wnids = SEPARATORS.split(_text(tree, "wnids.txt").strip())
    if wnids == [""] or len(set(wnids)) < len(wnids):
        raise DataError(f"wnids.txt in {tree.where} is empty or lists a class twice")
    named = "words.txt" in tree.names
    words = dict(_pairs(tree, "words.txt")) if named else {}
    decoder = Decoder()

    def sample(name: str, label: int) -> Sample:
        return Sample(partial(_read, tree, decoder, name), label, name)

    return Source(
        classes=tuple(ClassName(wnid, words.get(wnid, wnid)) for wnid in wnids),
        train=[sample(name, label) for name, label in _train(tree, wnids)],
        val=[sample(name, wnids.index(wnid)) for name, wnid in _val(tree, set(wnids))],
        size=64,
        mean=MEAN,
        std=STD,
        notes=[] if named else [f"{tree.where} has no words.txt: classes are called by their ids"],
        converted=decoder.converted,
    )


def _opened(path: Path) -> Tree:
    """What lies beside wnids.txt, in a folder or an archive, or in the one archive in the folder."""
    tree = open_files(path, ())
    if not any(PurePosixPath(name).name == "wnids.txt" for name in tree.names) and path.is_dir():
        names = (name for name in tree.names if re.search(r"imagenet[^/]*\.zip", name, re.IGNORECASE))
        archives = sorted(str(path / name) for name in names)
        if len(archives) > 1:
            raise DataError(f"{path} holds several archives, {' and '.join(archives[:2])}; give one of them")
        tree = open_files(Path(archives[0]), ()) if archives else tree
    return below(tree, find(tree, "wnids.txt").removesuffix("wnids.txt"))


def _train(tree: Tree, wnids: list[str]) -> list[tuple[str, int]]:
    images: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for path in sorted(tree.names):
        if match := TRAIN_IMAGE.fullmatch(path):
            wnid, name = match.groups()
            if (other := images[wnid].setdefault(name, path)) != path:
                raise DataError(f"{other} and {path} in {tree.where} have one name; remove one of them")
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
        (images[wnid][name], label)
        for label, wnid in enumerate(wnids)
        for name in sorted(images[wnid], key=natural_key)
    ]


def _val(tree: Tree, wnids: set[str]) -> list[tuple[str, str]]:
    """Where each image lies, and its class, as the annotations, its folder or both have it."""
    paths: dict[str, str] = {}
    classes: defaultdict[str, set[str]] = defaultdict(set)
    for path in sorted(tree.names):
        if match := VAL_IMAGE.fullmatch(path):
            folder, name = match.groups()
            paths[name] = path
            classes[name] |= {folder} if folder else set()
    for name, wnid in _pairs(tree, ANNOTATIONS) if ANNOTATIONS in tree.names else ():
        classes[name].add(wnid)
    where = f"{ANNOTATIONS} in {tree.where}, or the class's folder,"
    for name, given in classes.items():
        if unknown := sorted(given - wnids):
            raise DataError(f"{where} gives {name} the class {unknown[0]}, which wnids.txt does not list")
        if len(given) > 1:
            raise DataError(f"{where} gives {name} two classes, {' and '.join(sorted(given))}")
    if absent := sorted(classes.keys() - paths.keys(), key=natural_key):
        raise DataError(
            f"val/images/{absent[0]} is missing in {tree.where}, though {ANNOTATIONS} lists it{_more(absent)}"
        )
    if unlabelled := sorted((name for name in paths if not classes[name]), key=natural_key):
        _text(tree, ANNOTATIONS)
        raise DataError(
            f"{paths[unlabelled[0]]} in {tree.where} has no line in {ANNOTATIONS}{_more(unlabelled)}"
        )
    return [(paths[name], next(iter(classes[name]))) for name in sorted(paths, key=natural_key)]


def _read(tree: Tree, decoder: Decoder, name: str) -> Pixels:
    return np.asarray(decoder(tree.read(name), f"{name} in {tree.where}"))


def _pairs(tree: Tree, name: str) -> Iterator[tuple[str, str]]:
    """Yield the first two columns of each line, the second of words.txt with all that follows."""
    for number, line in enumerate(_text(tree, name).splitlines(), start=1):
        columns = SEPARATORS.split(line.strip(), maxsplit=1 if name == "words.txt" else 2)
        if columns != [""] and len(columns) < 2:
            raise DataError(f"{name} in {tree.where}, line {number}: two columns are needed, not {line!r}")
        if columns != [""]:
            yield columns[0], columns[1]


def _text(tree: Tree, name: str) -> str:
    if name not in tree.names:
        raise DataError(f"{tree.where} has no {name}; get the official archive")
    return text_of(tree, name)


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
