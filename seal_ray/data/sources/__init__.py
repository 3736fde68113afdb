"""What is known of every source before it is read: files, address, licence, published counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OFFICIAL = "official"
A_FIFTH = "none is published, so a fifth of each class, drawn by seed 0, is held out"


@dataclass(frozen=True)
class SourceInfo:
    """A source that can be prepared.

    needs: the files that --source holds, packed or extracted. classes, images, train: as published; None
    where it is not (or depends on the user's own images). split: where train and val come from.
    """

    name: str
    needs: tuple[str, ...]
    address: str
    licence_note: str
    classes: int | None
    images: int | None
    train: int | None
    split: str = OFFICIAL

    @property
    def val(self) -> int | None:
        """Images held out, by the published numbers."""
        return None if self.images is None or self.train is None else self.images - self.train


INFOS = (
    SourceInfo(
        "tiny-imagenet",
        ("tiny-imagenet-200.zip",),
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "Images of ImageNet, for non-commercial research and education only; "
        "the rights stay with their owners. Do not redistribute.",
        200,
        110_000,
        100_000,
    ),
    SourceInfo(
        "digits",
        (),
        "https://archive.ics.uci.edu/dataset/80",
        "Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI), CC BY 4.0.",
        10,
        1_797,
        None,
        A_FIFTH,
    ),
    SourceInfo(
        "letters",
        (),
        "https://matplotlib.org",
        "A to Z drawn with the fonts that matplotlib brings: DejaVu (Bitstream Vera and Arev licences), STIX "
        "(SIL Open Font Licence 1.1) and the BaKoMa fonts of TeX (their own licence, free of charge).",
        26,
        2_080,
        1_664,
        "by font: four of the twenty are held out",
    ),
    SourceInfo(
        "folder",
        ("a folder of images a class, twice: --train and --val",),
        "",
        "Your own images: what you may do with them holds for this data set.",
        None,
        None,
        None,
        "your own",
    ),
    SourceInfo(
        "cifar10",
        ("cifar-10-batches-py/",),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
        10,
        60_000,
        50_000,
    ),
    SourceInfo(
        "cifar100",
        ("cifar-100-python/",),
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
        100,
        60_000,
        50_000,
    ),
    SourceInfo(
        "flowers102",
        ("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "Oxford 102 Flowers (M.-E. Nilsback, A. Zisserman, 2008). Images from the web; no licence is stated "
        "and the rights stay with their owners.",
        102,
        8_189,
        2_040,
        "official, trained on its train and validation parts",
    ),
    SourceInfo(
        "cub200",
        ("CUB_200_2011.tgz",),
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "Caltech-UCSD Birds-200-2011 (C. Wah et al.). For non-commercial research and education only; "
        "the rights to the images stay with their owners.",
        200,
        11_788,
        5_994,
    ),
    SourceInfo(
        "aircraft",
        ("fgvc-aircraft-2013b.tar.gz",),
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        "FGVC-Aircraft (S. Maji et al., arXiv 1306.5151). For non-commercial research only; the "
        "photographers keep the copyright.",
        100,
        10_000,
        6_667,
        "official, by variant, trained on its train and validation parts",
    ),
    SourceInfo(
        "mit67",
        ("indoorCVPR_09.tar", "TrainImages.txt", "TestImages.txt"),
        "https://web.mit.edu/torralba/www/indoor.html",
        "MIT Indoor Scenes (A. Quattoni, A. Torralba, CVPR 2009). For research only.",
        67,
        6_700,
        5_360,
    ),
    SourceInfo(
        "dogs",
        ("images.tar", "lists.tar"),
        "http://vision.stanford.edu/aditya86/ImageNetDogs/",
        "Stanford Dogs (A. Khosla et al., 2011). Images of ImageNet, for non-commercial research and "
        "education only; the rights stay with their owners.",
        120,
        20_580,
        12_000,
    ),
    SourceInfo(
        "eurosat",
        ("EuroSAT_RGB.zip, or EuroSAT.zip",),
        "https://github.com/phelber/EuroSAT",
        "EuroSAT, RGB (P. Helber et al., 2019), MIT licence; contains Copernicus Sentinel data.",
        10,
        27_000,
        None,
        A_FIFTH,
    ),
    SourceInfo(
        "cropdisease",
        ("the Kaggle archive plant-disease: train/ and test/",),
        "https://www.kaggle.com/datasets/saroz014/plant-disease",
        "PlantVillage (D. Hughes, M. Salathe, arXiv 1511.08060), CC BY-SA 3.0.",
        38,
        54_305,
        43_456,
    ),
    SourceInfo(
        "isic",
        ("ISIC2018_Task3_Training_Input.zip", "ISIC2018_Task3_Training_GroundTruth.zip"),
        "https://challenge.isic-archive.com/data/#2018",
        "ISIC 2018 task 3 (N. Codella et al., arXiv 1902.03368; P. Tschandl et al., HAM10000), CC BY-NC 4.0.",
        7,
        10_015,
        None,
        f"{A_FIFTH}; images of one lesion may lie in both",
    ),
    SourceInfo(
        "chestx",
        ("images_001.tar.gz to _012.tar.gz", "Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"),
        "https://nihcc.app.box.com/v/ChestXray-NIHCC",
        "ChestX-ray14 (X. Wang et al., CVPR 2017; NIH Clinical Center). No restriction on use; name the NIH "
        "Clinical Center, cite the paper and link to the address.",
        7,
        25_848,
        None,
        "official, by patient; the images with one finding alone of seven",
    ),
)

CATALOGUE: Mapping[str, SourceInfo] = {info.name: info for info in INFOS}
"""Every source by its name."""
