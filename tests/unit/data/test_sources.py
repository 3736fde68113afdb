"""Sources: what is read, in which order, with which labels, and what is refused."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional

from seal_ray.data.dataset import Source
from seal_ray.data.prepare import prepare
from seal_ray.data.sources import builtin, open_source
from seal_ray.errors import ConfigError, DataError
from tests.unit.conftest import jpeg, smooth_images, zip_folder


def tiny(path: Path) -> Source:
    return open_source("tiny-imagenet", source=path)


def contents(source: Source) -> list[tuple[str, int, bytes]]:
    return [(s.origin, s.label, s.read().tobytes()) for s in (*source.train, *source.val)]


def test_tiny_imagenet_labels_follow_wnids_txt_and_images_count_upwards(tiny_imagenet_folder: Path):
    source = tiny(tiny_imagenet_folder)
    assert [(name.id, name.words) for name in source.classes] == [
        ("n03", "newt"),
        ("n01", "goldfish, Carassius"),
        ("n02", "toad"),
    ]
    assert [(s.origin, s.label) for s in source.train] == [
        (f"train/{wnid}/images/{wnid}_{i}.JPEG", label)
        for label, wnid in enumerate(["n03", "n01", "n02"])
        for i in range(11)
    ]
    assert source.mean == (0.485, 0.456, 0.406)
    assert source.std == (0.229, 0.224, 0.225)


def test_tiny_imagenet_val_labels_come_from_the_annotations(tiny_imagenet_folder: Path):
    source = tiny(tiny_imagenet_folder)
    by_wnid = {"n03": 0, "n01": 1, "n02": 2}
    assert [(s.origin, s.label) for s in source.val] == [
        (f"val/images/val_{i}.JPEG", by_wnid[["n01", "n02", "n03"][i % 3]]) for i in range(6)
    ]


def test_tiny_imagenet_pixels_are_those_of_the_file_and_grayscale_becomes_rgb(tiny_imagenet_folder: Path):
    source = tiny(tiny_imagenet_folder)
    originals = smooth_images(39, 64, seed=5)
    for sample, original in zip((*source.train, *source.val), originals, strict=True):
        read = sample.read()
        assert read.shape == (64, 64, 3)
        assert read.dtype == np.uint8
        gray = sample.origin.endswith("n03_1.JPEG")
        expected = np.repeat(original[..., :1], 3, axis=2) if gray else original
        assert np.abs(read.astype(int) - expected).mean() < 6
        assert not gray or (read == read[..., :1]).all()


@pytest.mark.parametrize("top", ["", "tiny-imagenet-200", "another name"])
def test_a_zip_archive_reads_as_the_folder_does(tiny_imagenet_folder: Path, tmp_path: Path, top: str):
    archive = zip_folder(tiny_imagenet_folder, tmp_path / "archive.zip", top)
    assert contents(tiny(archive)) == contents(tiny(tiny_imagenet_folder))
    assert contents(tiny(tiny_imagenet_folder.parent)) == contents(tiny(tiny_imagenet_folder))


def replace_line(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "listed class without a folder": (
        lambda f: shutil.rmtree(f / "train/n01"),
        "train/n01/images .* missing",
    ),
    "folder without images": (
        lambda f: [image.unlink() for image in (f / "train/n02/images").iterdir()],
        "train/n02/images .* missing or has no",
    ),
    "folder of an unlisted class": (
        lambda f: shutil.copytree(f / "train/n01", f / "train/n77"),
        "train/n77 .* wnids.txt does not list",
    ),
    "class listed twice": (lambda f: replace_line(f / "wnids.txt", "n02", "n01"), "wnids.txt .* twice"),
    "no annotations": (lambda f: (f / "val/val_annotations.txt").unlink(), "no val/val_annotations.txt"),
    "image without annotation": (
        lambda f: (f / "val/images/val_77.JPEG").write_bytes(b""),
        "val/images/val_77.JPEG .* no line in val/val_annotations.txt",
    ),
    "annotation of an unknown class": (
        lambda f: replace_line(f / "val/val_annotations.txt", "val_4.JPEG\tn02", "val_4.JPEG\tn98"),
        "val_4.JPEG the class n98",
    ),
    "two annotations that differ": (
        lambda f: replace_line(f / "val/val_annotations.txt", "val_4.JPEG\tn02", "val_5.JPEG\tn02"),
        "val_5.JPEG two classes",
    ),
    "annotated image missing": (
        lambda f: (f / "val/images/val_3.JPEG").unlink(),
        "val/images/val_3.JPEG is missing",
    ),
    "annotation with one column": (
        lambda f: replace_line(f / "val/val_annotations.txt", "val_4.JPEG\tn02\t0\t0\t62\t62", "val_4.JPEG"),
        "val_annotations.txt .* line 2",
    ),
    "text that is none": (lambda f: (f / "words.txt").write_bytes(b"n01\t\xff"), "words.txt .* UTF-8"),
    "no wnids": (lambda f: (f / "wnids.txt").unlink(), "wnids.txt is missing in"),
    "image in two folders": (
        lambda f: shutil.copy(f / "train/n01/images/n01_3.JPEG", f / "train/n01/n01_3.JPEG"),
        "train/n01/images/n01_3.JPEG and train/n01/n01_3.JPEG .* have one name",
    ),
    "folder of another class than the annotation": (
        lambda f: shutil.copytree(f / "val/images", f / "val/n01"),
        "two classes, n01 and n0",
    ),
    "val in a folder of an unlisted class": (
        lambda f: (f / "val/images").rename(f / "val/n77"),
        "the class n77, which wnids.txt does not list",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_an_incomplete_tiny_imagenet_is_refused_by_name(
    tiny_imagenet_folder: Path, tmp_path: Path, fault: str, packed: bool
):
    damage, message = FAULTS[fault]
    damage(tiny_imagenet_folder)
    path = zip_folder(tiny_imagenet_folder, tmp_path / "a.zip", "t") if packed else tiny_imagenet_folder
    with pytest.raises(DataError, match=message):
        tiny(path)


@pytest.mark.parametrize("name", ["../evil.JPEG", "/evil.JPEG", "top/../../evil", "..\\evil", "C:/evil"])
def test_an_archive_member_outside_the_folder_is_refused(
    tiny_imagenet_folder: Path, tmp_path: Path, name: str
):
    archive = zip_folder(tiny_imagenet_folder, tmp_path / "a.zip", "top")
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(name, "x")
    with pytest.raises(DataError, match="leads outside the archive"):
        tiny(archive)


def test_a_symbolic_link_in_an_archive_is_refused(tiny_imagenet_folder: Path, tmp_path: Path):
    archive = zip_folder(tiny_imagenet_folder, tmp_path / "a.zip", "top")
    link = zipfile.ZipInfo("top/train/n01/images/n01_99.JPEG")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(link, "/etc/hostname")
    with pytest.raises(DataError, match=r"n01_99.JPEG' is a symbolic link"):
        tiny(archive)


def test_a_damaged_archive_is_refused(tiny_imagenet_folder: Path, tmp_path: Path):
    archive = zip_folder(tiny_imagenet_folder, tmp_path / "a.zip", "")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a.zip cannot be read as a zip archive"):
        tiny(archive)
    image = (tiny_imagenet_folder / "train/n01/images/n01_4.JPEG").read_bytes()
    at = whole.index(image) + len(image) // 2
    archive.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    damaged = next(s for s in tiny(archive).train if s.origin.endswith("/n01_4.JPEG"))
    with pytest.raises(DataError, match=r"n01_4.JPEG in .*a.zip cannot be read"):
        damaged.read()


def test_several_data_sets_in_one_folder_are_refused(tiny_imagenet_folder: Path):
    shutil.copytree(tiny_imagenet_folder, tiny_imagenet_folder.parent / "copy")
    with pytest.raises(DataError, match=r"wnids.txt twice: copy/.* and tiny-imagenet-200/.*; give one"):
        tiny(tiny_imagenet_folder.parent)


def test_a_missing_path_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        tiny(tmp_path / "nowhere")


def test_digits_are_those_of_scikit_learn_enlarged_four_times():
    bunch = load_digits()
    source = open_source("digits")
    samples = {int(s.origin.removeprefix("digits/")): s for s in (*source.train, *source.val)}
    assert sorted(samples) == list(range(1797))
    for index, sample in samples.items():
        image = sample.read()
        blocks = image.reshape(8, 4, 8, 4, 3)
        assert sample.label == bunch.target[index]
        assert (blocks == blocks[:, :1, :, :1, :1]).all()
        np.testing.assert_allclose(blocks[:, 0, :, 0, 0] * (16 / 255), bunch.images[index], atol=0.04)
    assert max(s.read().max() for s in source.train) == 255


def test_the_split_of_digits_holds_out_a_fifth_of_each_class_and_never_changes():
    source = open_source("digits")
    sizes = np.bincount(load_digits().target)
    held_out = np.bincount([s.label for s in source.val])
    assert (np.abs(held_out - sizes / 5) <= 0.5).all()
    assert [s.origin for s in open_source("digits").val] == [s.origin for s in source.val]
    assert [s.origin for s in source.val[:5]] == [
        "digits/3",
        "digits/12",
        "digits/14",
        "digits/25",
        "digits/34",
    ]


@pytest.fixture
def image_folders(tmp_path: Path) -> tuple[Path, Path]:
    shapes = [(40, 21), (21, 40), (16, 16), (9, 12), (33, 50)]
    for split, seed in (("train", 0), ("val", 1)):
        for name in ("cat", "ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for i, (height, width) in enumerate(shapes):
                image = np.random.default_rng([seed, i]).integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / split / name / f"{i}.png")
    return tmp_path / "train", tmp_path / "val"


def test_folders_are_resized_and_cropped_as_torchvision_does(image_folders: tuple[Path, Path]):
    train, val = image_folders
    source = open_source("folder", train=train, val=val, size=12)
    assert [name.id for name in source.classes] == ["ant", "bee", "cat"]
    assert [s.label for s in source.train] == [0] * 5 + [1] * 5 + [2] * 5
    reference = ImageFolder(str(train))
    for sample, (image, label) in zip(source.train, reference, strict=True):
        resized = functional.resize(image, [12], functional.InterpolationMode.BILINEAR, antialias=True)
        assert sample.label == label
        assert (sample.read() == np.asarray(functional.center_crop(resized, [12]))).all()


def test_folders_that_do_not_fit_are_refused(image_folders: tuple[Path, Path]):
    train, val = image_folders
    with pytest.raises(ConfigError, match=r"--size 0 is outside 1..4096"):
        open_source("folder", train=train, val=val, size=0)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        open_source("folder", train=train, val=val / "nowhere", size=8)
    with pytest.raises(DataError, match="cat holds no folders"):
        open_source("folder", train=train, val=val / "cat", size=8)
    shutil.rmtree(val / "bee")
    with pytest.raises(DataError, match=r"train has a class 'bee' that .*val lacks"):
        open_source("folder", train=train, val=val, size=8)
    (val / "bee").mkdir()
    with pytest.raises(DataError, match="bee holds no images"):
        open_source("folder", train=train, val=val, size=8)


def test_a_file_that_is_no_image_though_it_is_called_one_is_named(image_folders: tuple[Path, Path]):
    train, val = image_folders
    whole = jpeg(smooth_images(1, 64, 0)[0])
    for content in (b"", b"not an image", whole[:30]):
        (train / "bee" / "7.jpg").write_bytes(content)
        with pytest.raises(DataError, match=r"train/bee/7.jpg is not a readable image"):
            open_source("folder", train=train, val=val, size=8)
    (train / "bee" / "7.jpg").write_bytes(whole[:-200])  # whose header is whole
    broken = open_source("folder", train=train, val=val, size=8).train[10]
    with pytest.raises(DataError, match=r"train/bee/7.jpg is not a readable image"):
        broken.read()


@pytest.mark.parametrize("in_header", [True, False])
def test_all_images_that_cannot_be_read_are_named_at_once(
    image_folders: tuple[Path, Path], tmp_path: Path, in_header: bool
):
    train, val = image_folders
    whole = jpeg(smooth_images(1, 64, 0)[0])
    bees = [train / "bee" / f"{i}.jpg" for i in range(7, 28)]
    files = [train / "ant" / "6.jpg", *bees, val / "cat" / "7.jpg"]
    for file in files:
        file.write_bytes(whole[:-200])  # whose header is whole
    if in_header:
        files[5].write_bytes(b"")
    with pytest.raises(DataError) as caught:
        prepare(open_source("folder", train=train, val=val, size=8), tmp_path / "to")
    first, *lines, more = str(caught.value).splitlines()
    named = {line.strip().partition(" is not a readable image")[0] for line in (first, *lines)}
    assert (len(named), more.strip()) == (20, "and 3 more")
    assert named < set(map(str, files))
    assert not (tmp_path / "to").exists()

    for file in files[2:]:
        file.unlink()
    with pytest.raises(DataError, match=r"ant/6.jpg is not [^\n]*\n  .*bee/7.jpg is not [^\n]*$"):
        prepare(open_source("folder", train=train, val=val, size=8), tmp_path / "to")


CIFAR = {"cifar10": ([f"data_batch_{i}.bin" for i in range(1, 6)], 1), "cifar100": (["train.bin"], 2)}
"""The files of training images, and how many labels each image has."""


def cifar_files(name: str, folder: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Two images a file of CIFAR's binary version: the files, pixels (N, 3, 32, 32) and labels (N,)."""
    train, bytes_of_labels = CIFAR[name]
    files = [*train, "test_batch.bin" if name == "cifar10" else "test.bin"]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2 * len(files), 3, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 3, 2 * len(files), dtype=np.uint8)
    folder.mkdir(parents=True)
    for i, file in enumerate(files):
        content = b""
        for image in (2 * i, 2 * i + 1):
            content += bytes([9] * (bytes_of_labels - 1)) + bytes([labels[image]])
            for colour in range(3):
                content += pixels[image, colour].tobytes()
        (folder / file).write_bytes(content)
    words = "batches.meta.txt" if name == "cifar10" else "fine_label_names.txt"
    (folder / words).write_text("frog\nship\ncat\n\n")
    return files, pixels, labels


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_from_its_binary_version(tmp_path: Path, name: str, packed: bool):
    folder = tmp_path / "made" / f"{name}-batches-bin"
    _, pixels, labels = cifar_files(name, folder)
    path = tmp_path / "made"
    if packed:
        path = tmp_path / "given"
        path.mkdir()
        archive = path / f"cifar-{name.removeprefix('cifar')}-binary.tar.gz"
        with tarfile.open(archive, "w:gz") as file:
            file.add(folder, folder.name)
    source = open_source(name, source=path, allow_subset=True)
    assert [c.words for c in source.classes] == ["frog", "ship", "cat"]
    assert [s.label for s in (*source.train, *source.val)] == labels.tolist()
    assert len(source.val) == 2
    read = np.stack([s.read() for s in (*source.train, *source.val)])
    assert (read == pixels.transpose(0, 2, 3, 1)).all()
    if packed:
        again = open_source(name, source=archive, allow_subset=True)
        assert (again.train[0].read() == read[0]).all()


def test_cifar_that_is_not_whole_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no files"):
        open_source("cifar100", source=tmp_path)
    folder = tmp_path / "cifar-100-binary"
    cifar_files("cifar100", folder)
    with pytest.raises(DataError, match=r"train.bin in .*: 2 images where cifar100 has 50,000"):
        open_source("cifar100", source=tmp_path)
    file = folder / "train.bin"
    whole = file.read_bytes()
    for content in (b"", whole[:-1], whole + b"\0"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"train.bin in .* is cut short, or not of the binary version"):
            open_source("cifar100", source=tmp_path, allow_subset=True)
    file.write_bytes(b"\0\3" + whole[2:])
    with pytest.raises(DataError, match=r"train.bin in .* has the label 3, of 3 classes"):
        open_source("cifar100", source=tmp_path, allow_subset=True)
    file.unlink()
    with pytest.raises(DataError, match=r"train\.bin is missing in"):
        open_source("cifar100", source=tmp_path, allow_subset=True)


def test_a_download_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(builtin, "CIFAR", "http://127.0.0.1:1/cifar")
    with pytest.raises(DataError, match=r"the download to .* failed"):
        open_source("cifar10", source=tmp_path, download=True)


def test_an_unknown_source_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'tiny-imagenet'"):
        open_source("tinyimagenet")
    with pytest.raises(
        ConfigError, match="choose one of tiny-imagenet, digits, letters, cifar10, cifar100, folder"
    ):
        open_source("xyz")


def test_options_that_are_missing_or_do_not_apply_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="tiny-imagenet needs --source"):
        open_source("tiny-imagenet")
    with pytest.raises(ConfigError) as caught:
        open_source("folder", download=True)
    assert str(caught.value) == (
        "--download does not apply to folder; leave it out. "
        "folder needs --train (or --source) and --val (or --val-share)"
    )
    with pytest.raises(ConfigError, match="--download does not apply to digits"):
        open_source("digits", download=True)
    with pytest.raises(ConfigError, match="--size does not apply to cifar10"):
        open_source("cifar10", source=tmp_path, size=32)
