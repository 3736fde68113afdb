"""Readers of the official lists of each target: which image is of which class, in which split.

Each takes the files of the data set and raises DataError for a list that is missing or makes no sense. Where
a data set has an official validation part beside a test part, it is trained on, as published results do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from seal_ray.data.dataset import ClassName
from seal_ray.data.sources.archives import Tree, natural_key
from seal_ray.data.sources.files import above, arrays_of, find, lines_of, pairs_of, rows_of
from seal_ray.data.sources.listing import Entry, Listing, Target, hold_out_a_fifth
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


def flowers102(tree: Tree) -> Listing:
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
    return Listing(classes, images([*train.tolist(), *valid.tolist()]), images(test.tolist()), lists)


def cub200(tree: Tree) -> Listing:
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
    return Listing(classes, images("1"), images("0"), lists)


def aircraft(tree: Tree) -> Listing:
    """variants.txt orders the classes; images_variant_trainval.txt and ..._test.txt list the images."""
    names = lines_of(tree, find(tree, "variants.txt"))
    train, test = (find(tree, f"images_variant_{split}.txt") for split in ("trainval", "test"))
    root = f"{above(tree, 'data/images')}data/images/"

    def images(lists: str) -> list[Entry]:
        rows = pairs_of(tree, lists)
        return [(f"{root}{i}.jpg", _label(tree, lists, names, variant)) for i, variant in rows]

    classes = tuple(ClassName(name, name) for name in names)
    return Listing(classes, images(train), images(test), f"{train} or {test}")


def mit67(tree: Tree) -> Listing:
    """TrainImages.txt and TestImages.txt list <scene>/<image>."""
    train, test = find(tree, "TrainImages.txt"), find(tree, "TestImages.txt")
    paths = {lists: lines_of(tree, lists) for lists in (train, test)}
    names = sorted({path.split("/")[0] for listed in paths.values() for path in listed})
    root = above(tree, "Images")

    def images(lists: str) -> list[Entry]:
        return [(f"{root}Images/{path}", names.index(path.split("/")[0])) for path in paths[lists]]

    classes = tuple(ClassName(name, name.replace("_", " ")) for name in names)
    return Listing(classes, images(train), images(test), f"{train} or {test}")


def dogs(tree: Tree) -> Listing:
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
    return Listing(classes, images(train), images(test), f"{train} or {test}")


def _numbered(tree: Tree, lists: str) -> list[tuple[str, int]]:
    """The images of a list of dogs, each with the number of its class."""
    paths, labels = (values.tolist() for values in arrays_of(tree, lists, ["file_list", "labels"]))
    if len(paths) != len(labels):
        raise DataError(f"{lists} in {tree.where} has {len(paths)} images and {len(labels)} labels")
    return [(str(path), int(label)) for path, label in zip(paths, labels, strict=True)]


def eurosat(tree: Tree) -> Listing:
    """<class>/<class>_<number>.jpg, of which nobody published a split."""
    file = re.compile(r"(?:.*/)?([A-Za-z]+)/\1_[0-9]+\.jpg")
    matches = {path: match[1] for path in tree.names if (match := file.fullmatch(path))}
    names = sorted(set(matches.values()))
    paths = sorted(matches, key=natural_key)
    train, val = hold_out_a_fifth("eurosat", [(path, names.index(matches[path])) for path in paths])
    words = (re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower() for name in names)
    return Listing(tuple(map(ClassName, names, words)), train, val, "the class folders")


def cropdisease(tree: Tree) -> Listing:
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
    return Listing(classes, images(True), images(False), "the class folders")


def isic(tree: Tree) -> Listing:
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
    return Listing(classes, *hold_out_a_fifth("isic", images), lists)


def chestx(tree: Tree) -> Listing:
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
    return Listing(classes, images(train), images(test), lists)


def _label(tree: Tree, lists: str, names: Sequence[str], name: str) -> int:
    try:
        return names.index(name)
    except ValueError:
        raise DataError(f"{lists} in {tree.where}: the class {name!r} is not a known one") from None


TARGETS: Mapping[str, Target] = {
    "flowers102": Target(("102flowers.tgz",), flowers102),
    "cub200": Target(("CUB_200_2011.tgz",), cub200),
    "aircraft": Target(("fgvc-aircraft-2013b*.tar.gz",), aircraft, banner=20),
    "mit67": Target(("indoorCVPR_09.tar",), mit67),
    "dogs": Target(("images.tar", "lists.tar"), dogs),
    "eurosat": Target(("EuroSAT*.zip",), eurosat),
    "cropdisease": Target(("*.zip",), cropdisease),
    "isic": Target(("ISIC2018_Task3_Training_*.zip",), isic),
    "chestx": Target(("images_*.tar.gz",), chestx),
}
"""How each target is read, by its name."""
