"""Data sets that networks are transferred to, from their official archives and lists.

Each function takes the files of a data set, reads which image is of which class in which split, and raises
DataError for a list that is missing or makes no sense. Where a data set has an official validation part
beside a test part, it is trained on, as published results do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from seal_ray.data.dataset import ClassName, Pixels, Sample, Source, fifth_of_each_class
from seal_ray.data.image_files import Decoder, centre_square, check_size
from seal_ray.data.sources.archives import (
    Tree,
    above,
    arrays_of,
    find,
    lines_of,
    natural_key,
    open_files,
    pairs_of,
    rows_of,
)
from seal_ray.data.sources.registry import A_FIFTH, SOURCES, SourceInfo, source
from seal_ray.errors import DataError

FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumothorax")
"""The findings of ChestX-ray14 that the cross-domain few-shot benchmark tells apart (arXiv 1912.07200)."""

LESIONS = {
    "MEL": "melanoma",
    "NV": "melanocytic nevus",
    "BCC": "basal cell carcinoma",
    "AKIEC": "actinic keratosis or Bowen's disease",
    "BKL": "benign keratosis",
    "DF": "dermatofibroma",
    "VASC": "vascular lesion",
}

Entry = tuple[str, int]
"""Where an image lies in its tree, and its label."""


@dataclass(frozen=True)
class ImageLists:
    """The images of a data set as its own lists have them; `lists` names those files for people."""

    classes: tuple[ClassName, ...]
    train: Sequence[Entry]
    val: Sequence[Entry]
    lists: str


ListReader = Callable[[Tree], ImageLists]


def transfer_source(
    name: str, *, archives: Sequence[str], banner: int = 0, **facts: Any
) -> Callable[[ListReader], ListReader]:
    """Decorator: the data set whose lists a function reads is the source of that name.

    archives: patterns of the names of its archives. banner: rows to cut off at the bottom of each image.
    facts: see `source`.
    """

    def add(lists_of: ListReader) -> ListReader:
        @source(name, **facts)
        def read(path: Path, size: int = 64, allow_subset: bool = False, background: str = "white") -> Source:
            """Read what `path` holds, its images cut to squares of `size` pixels.

            What the lists name must be there, in the published numbers. With `allow_subset` images may be
            missing, and classes that are left without images in one of the splits are dropped. Raises
            ConfigError for a size outside 1..4096 and DataError that says what is missing.
            """
            check_size(size)
            decoder = Decoder(background)
            tree, info = open_files(path, archives), SOURCES[name].info
            lists = lists_of(tree)
            lists = _those_there(lists, tree) if allow_subset else _complete(lists, tree)
            _check_counts(lists, info, tree.where, allow_subset)

            def samples(images: Sequence[Entry]) -> list[Sample]:
                cut = partial(_read, tree, decoder, size, banner)
                return [Sample(partial(cut, at), label, at) for at, label in images]

            return Source(
                lists.classes,
                samples(lists.train),
                samples(lists.val),
                size,
                licence_note=f"{info.licence_note} Split: {info.split}.",
                converted=decoder.converted,
            )

        return lists_of

    return add


def _complete(lists: ImageLists, tree: Tree) -> ImageLists:
    absent = [name for name, _ in (*lists.train, *lists.val) if name not in tree.names]
    if absent:
        more = f" (and {len(absent) - 1:,} more)" if len(absent) > 1 else ""
        raise DataError(
            f"{absent[0]} is missing in {tree.where}, though {lists.lists} lists it{more}; get the "
            "complete archive, or add --allow-subset"
        )
    return lists


def _those_there(lists: ImageLists, tree: Tree) -> ImageLists:
    train, val = ([i for i in images if i[0] in tree.names] for images in (lists.train, lists.val))
    kept = sorted({label for _, label in train} & {label for _, label in val})
    if not kept:
        raise DataError(f"{tree.where} has no class with both train and test images of {lists.lists}")
    new = {label: place for place, label in enumerate(kept)}
    return replace(
        lists,
        classes=tuple(lists.classes[label] for label in kept),
        train=[(name, new[label]) for name, label in train if label in new],
        val=[(name, new[label]) for name, label in val if label in new],
    )


def _check_counts(lists: ImageLists, info: SourceInfo, where: str, allow_subset: bool) -> None:
    """Compare with the published numbers; a subset may have less of each, never more."""
    train, val = len(lists.train), len(lists.val)
    found = {"classes": len(lists.classes), "images": train + val}
    published = {"classes": info.classes, "images": info.images}
    if info.train is not None and info.images is not None:
        found |= {"training images": train, "test images": val}
        published |= {"training images": info.train, "test images": info.images - info.train}
    for what, count in found.items():
        expected = published[what]
        assert expected is not None
        if count > expected or (count < expected and not allow_subset):
            remedy = "get the official archive" + ("" if count > expected else ", or add --allow-subset")
            raise DataError(f"{where} has {count:,} {what} where {info.name} has {expected:,}; {remedy}")


def _read(tree: Tree, decoder: Decoder, size: int, banner: int, name: str) -> Pixels:
    image = decoder(tree.read(name), f"{name} in {tree.where}")
    if image.height <= banner:
        raise DataError(f"{name} in {tree.where} is {image.height} pixels high, all of them its banner")
    return centre_square(image.crop((0, 0, image.width, image.height - banner)) if banner else image, size)


def hold_out_a_fifth(name: str, images: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Divide images into train and val where nobody published a split; the draw depends on `name` alone."""
    chosen = fifth_of_each_class(name, np.array([label for _, label in images], dtype=np.int64))
    train, val = ([i for i, c in zip(images, chosen, strict=True) if c == held] for held in (False, True))
    return train, val


@transfer_source(
    "flowers102",
    archives=("102flowers.tgz",),
    needs=("102flowers.tgz", "imagelabels.mat", "setid.mat"),
    address="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    licence_note=(
        "Oxford 102 Flowers (M.-E. Nilsback, A. Zisserman, 2008). Images from the web; no licence is stated "
        "and the rights stay with their owners."
    ),
    classes=102,
    images=8_189,
    train=2_040,
    split="official, trained on its train and validation parts",
)
def flowers102(tree: Tree) -> ImageLists:
    """setid.mat divides the images, imagelabels.mat gives their classes; both count from 1."""
    (labels,) = arrays_of(tree, find(tree, "imagelabels.mat"), ["labels"])
    lists = find(tree, "setid.mat")
    train, valid, test = arrays_of(tree, lists, ["trnid", "valid", "tstid"])
    root = above(tree, "jpg")
    numbers = [int(label) for label in labels.tolist()]

    def images(ids: Iterable[int]) -> list[Entry]:
        outside = [i for i in ids if not 1 <= i <= len(numbers)]
        if outside:
            raise DataError(f"{lists} in {tree.where} names image {outside[0]}, which imagelabels.mat lacks")
        return [(f"{root}jpg/image_{i:05d}.jpg", numbers[i - 1] - 1) for i in ids]

    classes = tuple(ClassName(str(number), f"flower {number}") for number in range(1, max(numbers) + 1))
    return ImageLists(classes, images([*train.tolist(), *valid.tolist()]), images(test.tolist()), lists)


@transfer_source(
    "cub200",
    archives=("CUB_200_2011.tgz",),
    needs=("CUB_200_2011.tgz",),
    address="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    licence_note=(
        "Caltech-UCSD Birds-200-2011 (C. Wah et al.). For non-commercial research and education only; "
        "the rights to the images stay with their owners."
    ),
    classes=200,
    images=11_788,
    train=5_994,
)
def cub200(tree: Tree) -> ImageLists:
    """images.txt, image_class_labels.txt and train_test_split.txt speak of images by number."""
    names = find(tree, "images.txt")
    root = names.removesuffix("images.txt")
    paths = dict(pairs_of(tree, names))
    classed, lists = find(tree, "image_class_labels.txt"), find(tree, "train_test_split.txt")
    labels, trained = dict(pairs_of(tree, classed)), dict(pairs_of(tree, lists))
    for path, held in ((classed, labels), (lists, trained)):
        if astray := sorted(paths.keys() ^ held.keys(), key=natural_key):
            raise DataError(
                f"{tree.where}: image {astray[0]} is not in both {names} and {path}; get them again"
            )
    folders = {labels[i]: path.split("/")[0] for i, path in paths.items()}
    numbers = sorted(folders, key=natural_key)
    new = {number: label for label, number in enumerate(numbers)}

    def images(flag: str) -> list[Entry]:
        return [(f"{root}images/{path}", new[labels[i]]) for i, path in paths.items() if trained[i] == flag]

    classes = tuple(ClassName(folders[n], folders[n].partition(".")[2].replace("_", " ")) for n in numbers)
    return ImageLists(classes, images("1"), images("0"), lists)


@transfer_source(
    "aircraft",
    archives=("fgvc-aircraft-2013b*.tar.gz",),
    banner=20,
    needs=("fgvc-aircraft-2013b.tar.gz",),
    address="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    licence_note=(
        "FGVC-Aircraft (S. Maji et al., arXiv 1306.5151). For non-commercial research only; the "
        "photographers keep the copyright."
    ),
    classes=100,
    images=10_000,
    train=6_667,
    split="official, by variant, trained on its train and validation parts",
)
def aircraft(tree: Tree) -> ImageLists:
    """variants.txt orders the classes; images_variant_trainval.txt and ..._test.txt list the images."""
    names = lines_of(tree, find(tree, "variants.txt"))
    train, test = (find(tree, f"images_variant_{split}.txt") for split in ("trainval", "test"))
    root = f"{above(tree, 'data/images')}data/images/"

    def images(lists: str) -> list[Entry]:
        rows = pairs_of(tree, lists)
        return [(f"{root}{i}.jpg", _label(tree, lists, names, variant)) for i, variant in rows]

    classes = tuple(ClassName(name, name) for name in names)
    return ImageLists(classes, images(train), images(test), f"{train} or {test}")


@transfer_source(
    "mit67",
    archives=("indoorCVPR_09.tar",),
    needs=("indoorCVPR_09.tar", "TrainImages.txt", "TestImages.txt"),
    address="https://web.mit.edu/torralba/www/indoor.html",
    licence_note="MIT Indoor Scenes (A. Quattoni, A. Torralba, CVPR 2009). For research only.",
    classes=67,
    images=6_700,
    train=5_360,
)
def mit67(tree: Tree) -> ImageLists:
    """TrainImages.txt and TestImages.txt list <scene>/<image>."""
    train, test = find(tree, "TrainImages.txt"), find(tree, "TestImages.txt")
    paths = {lists: lines_of(tree, lists) for lists in (train, test)}
    names = sorted({path.split("/")[0] for listed in paths.values() for path in listed})
    root = above(tree, "Images")

    def images(lists: str) -> list[Entry]:
        return [(f"{root}Images/{path}", names.index(path.split("/")[0])) for path in paths[lists]]

    classes = tuple(ClassName(name, name.replace("_", " ")) for name in names)
    return ImageLists(classes, images(train), images(test), f"{train} or {test}")


@transfer_source(
    "dogs",
    archives=("images.tar", "lists.tar"),
    needs=("images.tar", "lists.tar"),
    address="http://vision.stanford.edu/aditya86/ImageNetDogs/",
    licence_note=(
        "Stanford Dogs (A. Khosla et al., 2011). Images of ImageNet, for non-commercial research and "
        "education only; the rights stay with their owners."
    ),
    classes=120,
    images=20_580,
    train=12_000,
)
def dogs(tree: Tree) -> ImageLists:
    """train_list.mat and test_list.mat list <wnid>-<breed>/<image> with labels from 1."""
    train, test = find(tree, "train_list.mat"), find(tree, "test_list.mat")
    listed = {lists: _numbered(tree, lists) for lists in (train, test)}
    folders = {number: path.split("/")[0] for rows in listed.values() for path, number in rows}
    numbers = sorted(folders)
    root = above(tree, "Images")

    def images(lists: str) -> list[Entry]:
        return [(f"{root}Images/{path}", numbers.index(number)) for path, number in listed[lists]]

    names = [folders[number].partition("-") for number in numbers]
    classes = tuple(ClassName(wnid, breed.replace("_", " ")) for wnid, _, breed in names)
    return ImageLists(classes, images(train), images(test), f"{train} or {test}")


def _numbered(tree: Tree, lists: str) -> list[tuple[str, int]]:
    """The images of a list of dogs, each with the number of its class."""
    paths, labels = (values.tolist() for values in arrays_of(tree, lists, ["file_list", "labels"]))
    if len(paths) != len(labels):
        raise DataError(f"{lists} in {tree.where} has {len(paths)} images and {len(labels)} labels")
    return [(str(path), int(label)) for path, label in zip(paths, labels, strict=True)]


@transfer_source(
    "eurosat",
    archives=("EuroSAT*.zip",),
    needs=("EuroSAT_RGB.zip, or EuroSAT.zip",),
    address="https://github.com/phelber/EuroSAT",
    licence_note="EuroSAT, RGB (P. Helber et al., 2019), MIT licence; contains Copernicus Sentinel data.",
    classes=10,
    images=27_000,
    split=A_FIFTH,
)
def eurosat(tree: Tree) -> ImageLists:
    """<class>/<class>_<number>.jpg, of which nobody published a split."""
    file = re.compile(r"(?:.*/)?([A-Za-z]+)/\1_[0-9]+\.jpg")
    matches = {path: match[1] for path in tree.names if (match := file.fullmatch(path))}
    names = sorted(set(matches.values()))
    paths = sorted(matches, key=natural_key)
    train, val = hold_out_a_fifth("eurosat", [(path, names.index(matches[path])) for path in paths])
    words = (re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in names)
    return ImageLists(tuple(map(ClassName, names, words)), train, val, "the class folders")


@transfer_source(
    "cropdisease",
    archives=("*.zip",),
    needs=("the Kaggle archive plant-disease: train/ and test/",),
    address="https://www.kaggle.com/datasets/saroz014/plant-disease",
    licence_note="PlantVillage (D. Hughes, M. Salathe, arXiv 1511.08060), CC BY-SA 3.0.",
    classes=38,
    images=54_305,
    train=43_456,
)
def cropdisease(tree: Tree) -> ImageLists:
    """train/<class>/<image> and test/<class>/<image>, or valid/ in its place."""
    file = re.compile(r"(?:.*/)?(train|test|valid)/([^/]+)/[^/.][^/]*\.(?:jpe?g|png)", re.IGNORECASE)
    found = {path: match.groups() for path in tree.names if (match := file.fullmatch(path))}
    names = sorted({name for split, name in found.values() if split.lower() == "train"})
    if not names:
        raise DataError(f"{tree.where} has no images in train/<class>/; get the official archive")

    def images(train: bool) -> list[Entry]:
        chosen = (path for path, (split, _) in found.items() if (split.lower() == "train") == train)
        ordered = sorted(chosen, key=natural_key)
        return [(path, _label(tree, "train/", names, found[path][1])) for path in ordered]

    classes = tuple(ClassName(name, name.replace("___", ": ").replace("_", " ")) for name in names)
    return ImageLists(classes, images(True), images(False), "the class folders")


@transfer_source(
    "isic",
    archives=("ISIC2018_Task3_Training_*.zip",),
    needs=("ISIC2018_Task3_Training_Input.zip", "ISIC2018_Task3_Training_GroundTruth.zip"),
    address="https://challenge.isic-archive.com/data/#2018",
    licence_note="ISIC 2018 task 3 (N. Codella et al., arXiv 1902.03368; P. Tschandl et al., HAM10000), "
    "CC BY-NC 4.0.",
    classes=7,
    images=10_015,
    split=f"{A_FIFTH}; images of one lesion may lie in both",
)
def isic(tree: Tree) -> ImageLists:
    """One column a class in the ground truth of task 3, one of them 1. No split is published with it."""
    lists = find(tree, "ISIC2018_Task3_Training_GroundTruth.csv")
    root = above(tree, "ISIC2018_Task3_Training_Input")
    images = []
    for row in rows_of(tree, lists, ["image", *LESIONS]):
        of = [label for label, code in enumerate(LESIONS) if row[code].strip() in ("1", "1.0")]
        if len(of) != 1:
            raise DataError(f"{lists} in {tree.where} gives {row['image']} {len(of)} classes, not one")
        images.append((f"{root}ISIC2018_Task3_Training_Input/{row['image']}.jpg", of[0]))
    classes = tuple(ClassName(code, words) for code, words in LESIONS.items())
    return ImageLists(classes, *hold_out_a_fifth("isic", images), lists)


@transfer_source(
    "chestx",
    archives=("images_*.tar.gz",),
    needs=("images_001.tar.gz to _012.tar.gz", "Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"),
    address="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    licence_note=(
        "ChestX-ray14 (X. Wang et al., CVPR 2017; NIH Clinical Center). No restriction on use; name the NIH "
        "Clinical Center, cite the paper and link to the address."
    ),
    classes=7,
    images=25_848,
    split="official, by patient; the images with one finding alone of seven",
)
def chestx(tree: Tree) -> ImageLists:
    """The images with one finding alone, and that one of seven; split by patient as the NIH lists them."""
    lists = find(tree, "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
    splits = {name: set(lines_of(tree, find(tree, name))) for name in ("train_val_list.txt", "test_list.txt")}
    paths = {PurePosixPath(path).name: path for path in tree.names if path.endswith(".png")}
    labels = {
        row["Image Index"]: FINDINGS.index(row["Finding Labels"])
        for row in rows_of(tree, lists, ["Image Index", "Finding Labels"])
        if row["Finding Labels"] in FINDINGS
    }
    train, test = splits.values()
    if astray := sorted(name for name in labels if (name in train) == (name in test)):
        raise DataError(f"{tree.where}: {astray[0]} must be in one of {' and '.join(splits)}; get both again")

    def images(split: set[str]) -> list[Entry]:
        chosen = (name for name in labels if name in split)
        return [(paths.get(name, f"images/{name}"), labels[name]) for name in chosen]

    classes = tuple(ClassName(name, name.lower()) for name in FINDINGS)
    return ImageLists(classes, images(train), images(test), lists)


def _label(tree: Tree, lists: str, names: Sequence[str], name: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise DataError(f"{lists} in {tree.where}: the class {name!r} is not a known one") from None
