"""The data sets that features are carried over to: prepared folders, called by their path or by a name."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from seal_ray.data.beton import Dataset, load_dataset
from seal_ray.data.sources.builtin import SOURCES, find_prepared
from seal_ray.data.staging import open_dataset
from seal_ray.errors import ConfigError, DataError
from seal_ray.storage.paths import storage_path


@dataclass(frozen=True)
class Destination:
    """A data set that a network was not trained on. label: what results and tables call it."""

    label: str
    dataset: Dataset

    def facts(self) -> dict[str, object]:
        """What a result says of it."""
        dataset = self.dataset
        return {
            "label": self.label,
            "name": dataset.name,
            "identity": dataset.identity,
            "encoding": dataset.encoding,
            "size": dataset.size,
            "classes": len(dataset.classes),
            "images": {split: file.count for split, file in dataset.splits.items()},
        }


def find_destination(wanted: str, data: Path) -> Destination:
    """The data set at the path `wanted`, or of that name in the folder `data`.

    A path has a slash in it, or is a folder that holds a dataset.json. A name is a folder's in `data`, or its
    source's if only one was prepared from that. DataError for what is not prepared or is damaged; ConfigError
    for a name that is none, or stands for several.
    """
    path = Path(wanted)
    if "/" in wanted or (path / "dataset.json").is_file():
        return Destination(storage_path(wanted).resolve().name, open_dataset(wanted))
    if (data / wanted / "dataset.json").is_file():
        return Destination(wanted, load_dataset(data / wanted))
    prepared = find_prepared(data).get(wanted, ())
    if len(prepared) > 1:
        paths = ", ".join(map(str, prepared))
        raise ConfigError(f"{wanted}: is prepared {len(prepared)} times, in {paths}; name one of these")
    if prepared:
        return Destination(wanted, load_dataset(prepared[0]))
    if wanted not in SOURCES:
        near = difflib.get_close_matches(wanted, [*SOURCES, *(path.name for path in data.glob("*"))], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see `seal-ray data list`"
        raise ConfigError(f"{wanted}: is no prepared folder, none in {data}, and no known data set; {hint}")
    given = "".join(f" --{name} PATH" for name in SOURCES[wanted] if name in ("source", "train", "val"))
    command = f"seal-ray data prepare {wanted} --to {data / wanted}{given}"
    raise DataError(f"{wanted}: is not prepared in {data}; run `{command}`")
