"""Kept moments as artifacts of Weights & Biases: where they lie, or their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seal_ray.errors import CheckpointError
from seal_ray.phases.schedule import Row
from seal_ray.runs.checkpoint import read_manifest
from seal_ray.runs.folder import Store
from seal_ray.storage.paths import AnyPath, listed


def log_moments(run: Any, row: Row, store: Store, *, upload: bool = False) -> None:
    """Log the moments of the generation that ends with `row` as artifacts `<run id>-<moment>`.

    They refer to the files where they lie, of which none is read but the manifest, or with `upload` hold
    them. Damaged moments are left out; whoever reads them says so. StorageError when S3 does not answer.
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
        described = (folder / "manifest.json").read_bytes()
        itself = {"bytes": len(described), "sha256": hashlib.sha256(described).hexdigest()}
        for name, held in {**manifest["files"], "manifest.json": itself}.items():
            if upload:
                with artifact.new_file(name, mode="wb") as file:
                    file.write((folder / name).read_bytes())
            else:
                artifact.manifest.add_entry(_reference(folder / name, held))
        run.log_artifact(artifact)


def _reference(file: AnyPath, held: Mapping[str, Any]) -> Any:
    """A file that stays where it is, and what its manifest says. W&B's add_reference would need boto3."""
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    uri = file.absolute().as_uri() if isinstance(file, Path) else str(file)
    return ArtifactManifestEntry(path=file.name, ref=uri, digest=held["sha256"], size=held["bytes"])
