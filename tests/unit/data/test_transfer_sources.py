"""Transfer targets: small archives in the official layouts, and what is refused of them."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets
from torchvision.transforms import functional

from seal_ray.data.dataset import Source
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import find_prepared
from seal_ray.data.sources import SOURCES, open_source
from seal_ray.errors import ConfigError, DataError
from tests.unit.conftest import jpeg, smooth_images

Rows = list[tuple[str, int]]


def write_images(root: Path, paths: Iterable[str], seed: int = 0) -> None:
    """Photographs of 30 x 50 pixels: light and dark enough apart that a few rows or columns tell."""
    rng = np.random.default_rng(seed)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((50, 30), Image.Resampling.BILINEAR)
        image.save(root / path, "PNG" if path.endswith(".png") else "JPEG", quality=95)


def write_text(root: Path, path: str, *lines: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("".join(f"{line}\n" for line in lines))


def cells(paths: list[str]) -> np.ndarray:
    column = np.empty((len(paths), 1), dtype=object)
    column[:, 0] = paths
    return column


def write_flowers102(root: Path) -> None:
    write_images(root, [f"jpg/image_{i:05d}.jpg" for i in range(1, 9)])
    savemat(root / "imagelabels.mat", {"labels": np.array([[2, 1, 2, 3, 1, 3, 2, 1]], dtype=np.uint8)})
    ids = {"trnid": [[4, 2]], "valid": [[3, 8]], "tstid": [[7, 1, 5, 6]]}
    savemat(root / "setid.mat", {name: np.array(rows, dtype=np.uint16) for name, rows in ids.items()})


def write_cub200(root: Path) -> None:
    top = root / "CUB_200_2011"
    paths = ["001.Auk/a.jpg", "001.Auk/b.jpg", "002.Red_Owl/a.jpg", "002.Red_Owl/b.jpg", "010.Jay/a.jpg"]
    paths.append("010.Jay/b.jpg")
    write_images(top, [f"images/{path}" for path in paths])
    write_text(top, "images.txt", *(f"{i} {path}" for i, path in enumerate(paths, start=1)))
    write_text(top, "image_class_labels.txt", "1 1", "2 1", "3 2", "4 2", "5 10", "6 10")
    write_text(top, "train_test_split.txt", "1 0", "2 1", "3 1", "4 0", "5 1", "6 0")
    write_text(root, "attributes.txt", "1 has_bill")


def write_aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    write_images(data, [f"images/{i:07d}.jpg" for i in range(6)])
    write_text(data, "variants.txt", "F/A-18", "707-320", "Cessna 172")
    write_text(data, "images_variant_trainval.txt", "0000003 Cessna 172", "0000001 F/A-18", "0000005 707-320")
    write_text(data, "images_variant_test.txt", "0000000 707-320", "0000002 F/A-18", "0000004 Cessna 172")


def write_mit67(root: Path) -> None:
    train, test = ["gym/x 1.jpg", "bar/b.jpg", "bar/a.jpg"], ["bar/c.jpg", "gym/y.jpg"]
    write_images(root, [f"Images/{path}" for path in (*train, *test, "gym/unlisted.jpg")])
    write_text(root, "TrainImages.txt", *train)
    write_text(root, "TestImages.txt", *test)


def write_dogs(root: Path) -> None:
    train = ["n02-Great_Dane/n02_3.jpg", "n09-Chow/n09_1.jpg"]
    test = ["n09-Chow/n09_2.jpg", "n02-Great_Dane/n02_1.jpg", "n09-Chow/n09_3.jpg"]
    write_images(root, [f"Images/{path}" for path in (*train, *test)])
    savemat(root / "train_list.mat", {"file_list": cells(train), "labels": [[1], [2]]})
    savemat(root / "test_list.mat", {"file_list": cells(test), "labels": [[2], [1], [2]]})
    savemat(root / "file_list.mat", {"file_list": cells(train + test), "labels": [[1], [2], [2], [1], [2]]})


def write_eurosat(root: Path) -> None:
    names = ("SeaLake", "AnnualCrop", "River")
    write_images(root, [f"2750/{name}/{name}_{i}.jpg" for name in names for i in range(1, 13)])


def write_cropdisease(root: Path) -> None:
    names = ("Tomato___Leaf_Mold", "Apple___healthy")
    parts = {"train": ("10.JPG", "9.JPG"), "test": ("a.jpg",)}
    write_images(root, [f"dataset/{s}/{n}/{f}" for s, files in parts.items() for n in names for f in files])


def write_isic(root: Path) -> None:
    top = "ISIC2018_Task3_Training"
    codes = ["image", "MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC"]
    rows = [[f"ISIC_{i:07d}", *("1.0" if c == i % 7 else "0.0" for c in range(7))] for i in range(35)]
    write_images(root, [f"{top}_Input/{row[0]}.jpg" for row in rows])
    write_text(root, f"{top}_GroundTruth/{top}_GroundTruth.csv", *(",".join(r) for r in [codes, *rows]))


FOUND = ["Mass", "Nodule|Mass", "Effusion", "Mass", "No Finding", "Pneumonia", "Effusion", "Hernia"]


def write_chestx(root: Path) -> None:
    names = [f"0000000{i}_000.png" for i in range(len(FOUND))]
    write_images(root, [f"images/{name}" for name in names])
    rows = (f"{name},{found},0,{i},058Y" for i, (name, found) in enumerate(zip(names, FOUND, strict=True)))
    write_text(root, "Data_Entry_2017.csv", "Image Index,Finding Labels,Follow-up #,Patient ID,Age", *rows)
    write_text(root, "train_val_list.txt", *names[:3], *names[4:6])
    write_text(root, "test_list.txt", names[3], *names[6:])


@dataclass(frozen=True)
class Layout:
    """A target on disk: `archives` are the official ones, each with what it holds; the rest lies beside."""

    write: Callable[[Path], None]
    archives: dict[str, tuple[str, ...]]
    classes: list[tuple[str, str]]
    train: Rows
    val: Rows
    split_file: str
    first: str  # the image that tests remove or damage
    published: bool = True  # whether the split is


def numbered(pattern: str, rows: Rows) -> Rows:
    return [(pattern.format(name), label) for name, label in rows]


LAYOUTS = {
    "flowers102": Layout(
        write_flowers102,
        {"102flowers.tgz": ("jpg",)},
        [("1", "flower 1"), ("2", "flower 2"), ("3", "flower 3")],
        numbered("jpg/image_0000{}.jpg", [("4", 2), ("2", 0), ("3", 1), ("8", 0)]),
        numbered("jpg/image_0000{}.jpg", [("7", 1), ("1", 1), ("5", 0), ("6", 2)]),
        "setid.mat",
        "jpg/image_00007.jpg",
    ),
    "cub200": Layout(
        write_cub200,
        {"CUB_200_2011.tgz": ("CUB_200_2011", "attributes.txt")},
        [("001.Auk", "Auk"), ("002.Red_Owl", "Red Owl"), ("010.Jay", "Jay")],
        numbered("CUB_200_2011/images/{}.jpg", [("001.Auk/b", 0), ("002.Red_Owl/a", 1), ("010.Jay/a", 2)]),
        numbered("CUB_200_2011/images/{}.jpg", [("001.Auk/a", 0), ("002.Red_Owl/b", 1), ("010.Jay/b", 2)]),
        "CUB_200_2011/train_test_split.txt",
        "CUB_200_2011/images/002.Red_Owl/b.jpg",
    ),
    "aircraft": Layout(
        write_aircraft,
        {"fgvc-aircraft-2013b.tar.gz": ("fgvc-aircraft-2013b",)},
        [("F/A-18", "F/A-18"), ("707-320", "707-320"), ("Cessna 172", "Cessna 172")],
        numbered("fgvc-aircraft-2013b/data/images/000000{}.jpg", [("3", 2), ("1", 0), ("5", 1)]),
        numbered("fgvc-aircraft-2013b/data/images/000000{}.jpg", [("0", 1), ("2", 0), ("4", 2)]),
        "fgvc-aircraft-2013b/data/images_variant_trainval.txt",
        "fgvc-aircraft-2013b/data/images/0000001.jpg",
    ),
    "mit67": Layout(
        write_mit67,
        {"indoorCVPR_09.tar": ("Images",)},
        [("bar", "bar"), ("gym", "gym")],
        numbered("Images/{}.jpg", [("gym/x 1", 1), ("bar/b", 0), ("bar/a", 0)]),
        numbered("Images/{}.jpg", [("bar/c", 0), ("gym/y", 1)]),
        "TestImages.txt",
        "Images/gym/y.jpg",
    ),
    "dogs": Layout(
        write_dogs,
        {"images.tar": ("Images",), "lists.tar": ("train_list.mat", "test_list.mat", "file_list.mat")},
        [("n02", "Great Dane"), ("n09", "Chow")],
        numbered("Images/{}.jpg", [("n02-Great_Dane/n02_3", 0), ("n09-Chow/n09_1", 1)]),
        numbered(
            "Images/{}.jpg", [("n09-Chow/n09_2", 1), ("n02-Great_Dane/n02_1", 0), ("n09-Chow/n09_3", 1)]
        ),
        "train_list.mat",
        "Images/n09-Chow/n09_1.jpg",
    ),
    "eurosat": Layout(
        write_eurosat,
        {"EuroSAT.zip": ("2750",)},
        [("AnnualCrop", "annual crop"), ("River", "river"), ("SeaLake", "sea lake")],
        [],
        [],
        "",
        "2750/River/River_1.jpg",
        published=False,
    ),
    "cropdisease": Layout(
        write_cropdisease,
        {"archive.zip": ("dataset",)},
        [("Apple___healthy", "Apple: healthy"), ("Tomato___Leaf_Mold", "Tomato: Leaf Mold")],
        numbered(
            "dataset/train/{}.JPG",
            [
                ("Apple___healthy/9", 0),
                ("Apple___healthy/10", 0),
                ("Tomato___Leaf_Mold/9", 1),
                ("Tomato___Leaf_Mold/10", 1),
            ],
        ),
        numbered("dataset/test/{}/a.jpg", [("Apple___healthy", 0), ("Tomato___Leaf_Mold", 1)]),
        "",
        "dataset/train/Apple___healthy/9.JPG",
    ),
    "isic": Layout(
        write_isic,
        {
            "ISIC2018_Task3_Training_Input.zip": ("ISIC2018_Task3_Training_Input",),
            "ISIC2018_Task3_Training_GroundTruth.zip": ("ISIC2018_Task3_Training_GroundTruth",),
        },
        [
            ("MEL", "melanoma"),
            ("NV", "melanocytic nevus"),
            ("BCC", "basal cell carcinoma"),
            ("AKIEC", "actinic keratosis or Bowen's disease"),
            ("BKL", "benign keratosis"),
            ("DF", "dermatofibroma"),
            ("VASC", "vascular lesion"),
        ],
        [],
        [],
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv",
        "ISIC2018_Task3_Training_Input/ISIC_0000009.jpg",
        published=False,
    ),
    "chestx": Layout(
        write_chestx,
        {"images_001.tar.gz": ("images",)},
        [("Effusion", "effusion"), ("Mass", "mass")],
        numbered("images/0000000{}_000.png", [("0", 1), ("2", 0)]),
        numbered("images/0000000{}_000.png", [("3", 1), ("6", 0)]),
        "test_list.txt",
        "images/00000000_000.png",
    ),
}
SPLIT = [name for name, layout in LAYOUTS.items() if layout.published]
LISTED = [name for name, layout in LAYOUTS.items() if layout.split_file]


def extracted(name: str, tmp_path: Path) -> Path:
    root = tmp_path / "extracted"
    root.mkdir()
    LAYOUTS[name].write(root)
    return root


def packed(name: str, tmp_path: Path) -> Path:
    """The official archives, with the files that are published beside them."""
    root, to = extracted(name, tmp_path), tmp_path / "packed"
    to.mkdir()
    for archive, tops in LAYOUTS[name].archives.items():
        if archive.endswith(".zip"):
            with zipfile.ZipFile(to / archive, "w") as zipped:
                for file in (f for top in tops for f in sorted((root / top).rglob("*")) if f.is_file()):
                    zipped.write(file, file.relative_to(root))
        else:
            with tarfile.open(to / archive, "w" if archive.endswith(".tar") else "w:gz") as tarred:
                for top in tops:
                    tarred.add(root / top, f"./{top}")
    held = [top for tops in LAYOUTS[name].archives.values() for top in tops]
    for file in (file for file in root.iterdir() if file.name not in held):
        shutil.copy(file, to)
    return to


def subset(name: str, path: Path, size: int = 16) -> Source:
    return open_source(name, source=path, size=size, allow_subset=True)


def rows(samples: Iterable[object]) -> Rows:
    return [(sample.origin, sample.label) for sample in samples]  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", [extracted, packed])
@pytest.mark.parametrize("name", SPLIT)
def test_images_labels_and_splits_are_those_of_the_official_lists(
    tmp_path: Path, name: str, form: Callable[[str, Path], Path]
):
    source, layout = subset(name, form(name, tmp_path)), LAYOUTS[name]
    assert [(c.id, c.words) for c in source.classes] == layout.classes
    assert rows(source.train) == layout.train
    assert rows(source.val) == layout.val
    assert source.name == name


@pytest.mark.parametrize("name", LAYOUTS)
def test_archives_and_what_was_extracted_from_them_give_the_same_images(tmp_path: Path, name: str):
    one = subset(name, packed(name, tmp_path))
    two = subset(name, tmp_path / "extracted")
    for split in ("train", "val"):
        samples = getattr(one, split), getattr(two, split)
        assert rows(samples[0]) == rows(samples[1])
        # Backwards, since compressed archives are read in any order too.
        for a, b in zip(reversed(samples[0]), reversed(samples[1]), strict=True):
            assert (a.read() == b.read()).all()
            assert a.read().shape == (16, 16, 3)


def test_one_archive_that_holds_everything_is_enough(tmp_path: Path):
    root = packed("cub200", tmp_path)
    assert rows(subset("cub200", root / "CUB_200_2011.tgz").train) == LAYOUTS["cub200"].train
    assert rows(subset("cub200", tmp_path / "extracted/CUB_200_2011").train) == [
        (path.removeprefix("CUB_200_2011/"), label) for path, label in LAYOUTS["cub200"].train
    ]


@pytest.mark.parametrize(("name", "per_class"), [("eurosat", 12), ("isic", 5)])
def test_without_an_official_split_a_fifth_of_each_class_is_held_out_and_noted(
    tmp_path: Path, name: str, per_class: int
):
    root = extracted(name, tmp_path)
    source = subset(name, root)
    classes = len(LAYOUTS[name].classes)
    assert [(c.id, c.words) for c in source.classes] == LAYOUTS[name].classes
    held = (per_class + 2) // 5
    for samples, count in ((source.train, per_class - held), (source.val, held)):
        assert np.bincount([s.label for s in samples]).tolist() == [count] * classes
    assert rows(subset(name, root).val) == rows(source.val)
    everything = rows([*source.train, *source.val])
    assert len(set(everything)) == per_class * classes
    for path, label in everything:
        if name == "eurosat":
            assert path.split("/")[1] == source.classes[label].id
        else:
            assert int(path[-11:-4]) % 7 == label
    assert "a fifth of each class, drawn by seed 0" in source.licence_note


def test_flowers_and_aircraft_agree_with_torchvisions_readers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "flowers-102"
    root.mkdir()
    write_flowers102(root)
    files = {key: (file, None) for key, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)
    for split, parts in (("train", ("train", "val")), ("val", ("test",))):
        theirs = [datasets.Flowers102(str(tmp_path), part) for part in parts]
        expected = [row for d in theirs for row in zip(d._image_files, d._labels, strict=True)]
        ours = getattr(subset("flowers102", tmp_path), split)
        assert [(tmp_path / s.origin, s.label) for s in ours] == expected

    write_aircraft(tmp_path)
    for split, part in (("train", "trainval"), ("val", "test")):
        theirs = datasets.FGVCAircraft(str(tmp_path), part)
        ours = getattr(subset("aircraft", tmp_path), split)
        expected = zip(theirs._image_files, theirs._labels, strict=True)
        assert [(str(tmp_path / s.origin), s.label) for s in ours] == list(expected)


@pytest.mark.parametrize(("name", "banner"), [("aircraft", 20), ("flowers102", 0)])
def test_images_are_resized_as_torchvision_does_without_the_banner(tmp_path: Path, name: str, banner: int):
    root = extracted(name, tmp_path)
    for sample in subset(name, root, size=7).train:
        with Image.open(root / sample.origin) as image:
            shown = image.crop((0, 0, 50, 30 - banner))
        resized = functional.resize(shown, [7], functional.InterpolationMode.BILINEAR, antialias=True)
        assert (sample.read() == np.asarray(functional.center_crop(resized, [7]))).all()


def test_the_size_is_64_unless_it_is_given(tmp_path: Path):
    root = extracted("mit67", tmp_path)
    source = open_source("mit67", source=root, allow_subset=True)
    assert (source.size, source.train[0].read().shape) == (64, (64, 64, 3))
    with pytest.raises(ConfigError, match=r"--size 0 is outside 1\.\.4096"):
        subset("mit67", root, size=0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_fewer_images_or_classes_than_published_are_refused_without_allow_subset(tmp_path: Path, name: str):
    root = extracted(name, tmp_path)
    with pytest.raises(DataError, match=rf"has .* {name} has [\d,]+|missing .* though") as caught:
        open_source(name, source=root)
    assert "--allow-subset" in str(caught.value)


@pytest.mark.parametrize("name", SPLIT)
def test_an_archive_with_the_published_counts_is_complete_and_one_image_less_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    root, layout = extracted(name, tmp_path), LAYOUTS[name]
    train, val, classes = len(layout.train), len(layout.val), len(layout.classes)
    # ChestX names its seven classes even when there are no images of some.
    info = replace(SOURCES[name].info, classes=7 if name == "chestx" else classes, images=train + val)
    published = replace(info, train=None if info.train is None else train)
    monkeypatch.setattr(SOURCES[name], "info", published)
    found = open_source(name, source=root, size=8)
    named = [(path, layout.classes[label][0]) for path, label in layout.train]
    assert [(s.origin, found.classes[s.label].id) for s in found.train] == named
    (root / layout.first).unlink()
    with pytest.raises(DataError) as caught:
        open_source(name, source=root, size=8)
    if layout.split_file:
        more = f"{layout.first} is missing in {root}, though .* lists it; get the complete archive"
    else:
        more = f"{root} has {train + val - 1} images where {name} has {train + val}; get the official archive"
    assert caught.match(more)


def test_more_than_published_is_refused_even_as_a_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, read = extracted("cropdisease", tmp_path), SOURCES["cropdisease"]
    monkeypatch.setattr(read, "info", replace(read.info, classes=2, images=6, train=3))
    with pytest.raises(DataError, match=r"4 training images where .* has 3; get the official archive$"):
        subset("cropdisease", root)


def test_a_subset_drops_classes_that_a_split_lacks(tmp_path: Path):
    root = extracted("cub200", tmp_path)
    (root / LAYOUTS["cub200"].first).unlink()  # the only test image of the second class
    source = subset("cub200", root)
    assert [c.words for c in source.classes] == ["Auk", "Jay"]
    assert [s.label for s in (*source.train, *source.val)] == [0, 1, 0, 1]
    shutil.rmtree(root / "CUB_200_2011/images/010.Jay")
    (root / "CUB_200_2011/images/001.Auk/a.jpg").unlink()
    with pytest.raises(DataError, match="no class with both train and test images"):
        subset("cub200", root)


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_list_is_named(tmp_path: Path, name: str):
    root = extracted(name, tmp_path)
    lists = root / LAYOUTS[name].split_file
    lists.unlink()
    with pytest.raises(DataError, match=rf"{lists.name} is missing in .*; get it from the official address"):
        subset(name, root)


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00damaged", b"MATLAB 5.0 MAT-file" + b"\1" * 300])
def test_a_damaged_list_is_named(tmp_path: Path, name: str, content: bytes):
    root = extracted(name, tmp_path)
    lists = root / LAYOUTS[name].split_file
    lists.write_bytes(content)
    with pytest.raises(DataError, match=lists.name):
        subset(name, root)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_damaged_archive_is_named(tmp_path: Path, name: str):
    root = packed(name, tmp_path)
    archive = root / next(iter(LAYOUTS[name].archives))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=rf"{archive.name} cannot be read as a (zip|tar) archive .*again"):
        subset(name, root)
    archive.write_bytes(b"<html>Not found</html>")
    with pytest.raises(DataError, match=rf"{archive.name} cannot be read as a (zip|tar) archive"):
        subset(name, root)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_damaged_image_is_named_when_it_is_read(tmp_path: Path, name: str):
    root = extracted(name, tmp_path)
    (root / LAYOUTS[name].first).write_bytes(jpeg(smooth_images(1, 32, 0)[0])[:200])
    source = subset(name, root)
    (broken,) = (s for s in (*source.train, *source.val) if s.origin == LAYOUTS[name].first)
    with pytest.raises(DataError, match=rf"{LAYOUTS[name].first} in .* is not a readable image"):
        broken.read()


@pytest.mark.parametrize("member", ["../evil.txt", "/tmp/evil.txt", "CUB_200_2011/../../evil.txt"])
def test_a_tar_member_outside_its_folder_is_refused_and_nothing_is_extracted(tmp_path: Path, member: str):
    archive = packed("cub200", tmp_path) / "CUB_200_2011.tgz"
    before = sorted(tmp_path.rglob("*"))
    with tarfile.open(archive, "w:gz") as tarred:
        tarred.add(tmp_path / "extracted/CUB_200_2011", "CUB_200_2011")
        info = tarfile.TarInfo(member)
        info.size = 4
        tarred.addfile(info, BytesIO(b"evil"))
    with pytest.raises(
        DataError, match=r"CUB_200_2011.tgz: its member .*evil.txt' leads outside the archive"
    ):
        subset("cub200", archive.parent)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_member_outside_its_folder_is_refused(tmp_path: Path):
    root = packed("eurosat", tmp_path)
    with zipfile.ZipFile(root / "EuroSAT.zip", "a") as zipped:
        zipped.writestr("../evil.txt", "evil")
    with pytest.raises(DataError, match=r"evil.txt' leads outside the archive"):
        subset("eurosat", root)


def test_a_link_in_a_tar_is_not_followed(tmp_path: Path):
    root = packed("mit67", tmp_path)
    (tmp_path / "secret.jpg").write_bytes(jpeg(smooth_images(1, 32, 0)[0]))
    link = tarfile.TarInfo("Images/gym/y.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.jpg")
    with tarfile.open(root / "indoorCVPR_09.tar", "w") as tarred:
        tarred.add(tmp_path / "extracted/Images/bar", "Images/bar")
        tarred.addfile(link)
    source = subset("mit67", root)
    assert all("gym" not in s.origin for s in (*source.train, *source.val))


FAULTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "flower without a label": (
        "flowers102",
        lambda f: savemat(f / "setid.mat", {"trnid": [1, 9], "valid": [2], "tstid": [3]}),
        "setid.mat .* names image 9, which imagelabels.mat lacks",
    ),
    "variable missing": (
        "flowers102",
        lambda f: savemat(f / "setid.mat", {"trnid": [1], "valid": [2]}),
        "setid.mat .* no variable 'tstid'",
    ),
    "bird without a class": (
        "cub200",
        lambda f: write_text(f, "CUB_200_2011/image_class_labels.txt", "1 1", "2 1"),
        r"image 3 is not in both .*images.txt and .*image_class_labels.txt",
    ),
    "unknown variant": (
        "aircraft",
        lambda f: write_text(f, "fgvc-aircraft-2013b/data/images_variant_test.txt", "0000000 Concorde"),
        "images_variant_test.txt .* the class 'Concorde' is not a known one",
    ),
    "one column": (
        "aircraft",
        lambda f: write_text(f, "fgvc-aircraft-2013b/data/images_variant_test.txt", "0000000"),
        "images_variant_test.txt .* two columns are needed, not '0000000'",
    ),
    "labels of other length": (
        "dogs",
        lambda f: savemat(f / "test_list.mat", {"file_list": cells(["n09-Chow/a.jpg"]), "labels": [1, 2]}),
        "test_list.mat .* has 1 images and 2 labels",
    ),
    "two classes": (
        "isic",
        lambda f: write_text(
            f,
            LAYOUTS["isic"].split_file,
            "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC",
            "ISIC_0000001,1.0,0.0,0.0,0.0,0.0,0.0,1.0",
        ),
        "gives ISIC_0000001 2 classes, not one",
    ),
    "column missing": (
        "chestx",
        lambda f: write_text(f, "Data_Entry_2017.csv", "Image Index,Labels", "1.png,Mass"),
        "Data_Entry_2017.csv .* no column 'Finding Labels'",
    ),
    "row cut short": (
        "chestx",
        lambda f: write_text(f, "Data_Entry_2017.csv", "Image Index,Finding Labels", "1.png"),
        "Data_Entry_2017.csv .* the row '1.png' is cut short",
    ),
    "patient in both splits": (
        "chestx",
        lambda f: write_text(f, "test_list.txt", "00000000_000.png"),
        "00000000_000.png must be in one of train_val_list.txt and test_list.txt",
    ),
    "images missing": ("mit67", lambda f: shutil.rmtree(f / "Images"), "no files in a folder Images"),
    "no training images": (
        "cropdisease",
        lambda f: shutil.rmtree(f / "dataset/train"),
        "no images in train/<class>/",
    ),
    "test class that train lacks": (
        "cropdisease",
        lambda f: shutil.rmtree(f / "dataset/train/Apple___healthy"),
        "the class 'Apple___healthy' is not a known one",
    ),
    "list twice": (
        "mit67",
        lambda f: [
            (f / "TestImages.txt").unlink(),
            *(write_text(f, f"{folder}/TestImages.txt", "gym/y.jpg") for folder in "ab"),
        ],
        "TestImages.txt twice: a/TestImages.txt and b/TestImages.txt",
    ),
    "nothing but banner": (
        "aircraft",
        lambda f: Image.new("RGB", (40, 20)).save(f / LAYOUTS["aircraft"].first),
        "0000001.jpg .* is 20 pixels high, all of them its banner",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_makes_no_sense_is_refused_by_name(tmp_path: Path, fault: str):
    name, damage, message = FAULTS[fault]
    root = extracted(name, tmp_path)
    damage(root)
    with pytest.raises(DataError, match=message):
        for sample in subset(name, root).train:
            sample.read()


def test_paths_without_anything_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        subset("dogs", tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no files"):
        subset("dogs", tmp_path)


def test_a_full_disk_is_said_while_a_compressed_archive_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = packed("cub200", tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=r"CUB_200_2011.tgz cannot be unpacked to .* No space left .*TMPDIR"):
        subset("cub200", root)


def test_options_apply_to_targets_only(tmp_path: Path):
    with pytest.raises(ConfigError, match="--allow-subset does not apply to digits"):
        open_source("digits", allow_subset=True)
    with pytest.raises(ConfigError, match="--download does not apply to dogs"):
        open_source("dogs", source=tmp_path, download=True)
    with pytest.raises(ConfigError, match="dogs needs --source"):
        open_source("dogs")
    with pytest.raises(ConfigError, match="did you mean 'flowers102'"):
        open_source("flower102")


def test_every_source_says_what_it_needs_and_what_was_published():
    listed = {name: read.info for name, read in SOURCES.items()}
    assert all(info.name == name for name, info in listed.items())
    for name, counts in {
        "tiny-imagenet": (200, 100_000, 10_000),
        "cifar10": (10, 50_000, 10_000),
        "flowers102": (102, 1_020 + 1_020, 6_149),
        "cub200": (200, 5_994, 5_794),
        "aircraft": (100, 2 * 3_334 - 1, 3_333),
        "mit67": (67, 67 * 80, 67 * 20),
        "dogs": (120, 12_000, 8_580),
        "cropdisease": (38, 43_456, 10_849),
    }.items():
        assert (listed[name].classes, listed[name].train, listed[name].val) == counts
    totals = {"eurosat": (10, 27_000), "isic": (7, 10_015), "chestx": (7, 25_848), "digits": (10, 1_797)}
    for name, total in totals.items():
        assert (listed[name].classes, listed[name].images, listed[name].val) == (*total, None)
    assert all(info.licence_note and (info.address or info.name == "folder") for info in listed.values())
    assert all(listed[name].needs for name in LAYOUTS)


def test_prepared_data_sets_are_found_by_their_source(tmp_path: Path):
    source = subset("eurosat", extracted("eurosat", tmp_path))
    for folder in ("one", "two"):
        dataset = prepare(source, tmp_path / "data" / folder)
    assert dataset.licence_note == source.licence_note
    (tmp_path / "data" / "broken").mkdir()
    (tmp_path / "data" / "broken" / "dataset.json").write_text("{}")
    assert find_prepared(tmp_path / "data") == {"eurosat": (tmp_path / "data/one", tmp_path / "data/two")}
    assert find_prepared(tmp_path / "nowhere") == {}
