"""Kept moments as artifacts of Weights & Biases: where they lie, or their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seal_ray.errors import CheckpointError
from seal_ray.objects import AnyPath, listed
from seal_ray.schedule import Row
from seal_ray.snapshot import read_manifest
from seal_ray.store import Store


def log_moments(run: Any, row: Row, store: Store, *, upload: bool = False) -> None:
    """Log the moments of the generation that ends with `row` as artifacts `<run id>-<moment>`.

    They refer to the files where they lie, of which none is read but the manifest, or with `upload` hold
    them. Damaged moments are left out; whoever reads them says so.
    """
    import wandb

    known = store.generations()
    generation = row["generation"]
    for folder in listed(store.folder, f"moments/g{generation:03d}-*"):
        try:
            manifest = read_manifest(folder)
        except CheckpointError:
            continue
        parent = {"run": row["trained_by"], "generation_key": known.keys[generation] if known else None}
        facts = {
            "run": store.run_id,
            "moment": manifest["moment"],
            "generation": generation,
            "parent": parent,
        }
        facts |= {key: manifest[key] for key in ("position", "weights_sha256")}
        artifact = wandb.Artifact(f"{store.run_id}-{folder.name}", type="moment", metadata=facts)
        sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
        for name in (*sizes, "manifest.json"):
            if upload:
                with artifact.new_file(name, mode="wb") as file:
                    file.write((folder / name).read_bytes())
            else:
                artifact.manifest.add_entry(_reference(folder / name, sizes.get(name)))
        run.log_artifact(artifact)


def _reference(file: AnyPath, size: int | None) -> Any:
    """A file that stays where it is. W&B's own add_reference would want boto3 for S3."""
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    uri = file.absolute().as_uri() if isinstance(file, Path) else str(file)
    return ArtifactManifestEntry(path=file.name, ref=uri, digest=uri, size=size)
