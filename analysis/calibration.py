"""How far confidences can be trusted, accuracy by class, and which examples were forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import BaseModel, Field
from torch import Tensor

from seal_ray.analysis.base import Analysis, Result, analysis
from seal_ray.analysis.features import extract
from seal_ray.analysis.moments import AnalysedRun, Moment, tracked_epochs
from seal_ray.config.messages import STRICT
from seal_ray.metrics import check_logits, expected_calibration_error, per_class_accuracy
from seal_ray.phases.schedule import Position
from seal_ray.runs.folder import Store
from seal_ray.storage.paths import AnyPath
from seal_ray.tracking.workspace import Panel, PanelSection

if TYPE_CHECKING:
    from seal_ray.analysis.inputs import Inputs

FORGOTTEN_LISTED = 16


class CalibrationSettings(BaseModel):
    """Confidence against accuracy on all validation images."""

    model_config = STRICT

    bins: int = Field(default=15, ge=1, description="bins of the calibration error")


@analysis
class Calibration(Analysis):
    """How far confidences can be trusted (Guo et al., ICML 2017, arXiv 1706.04599), accuracy by class, how
    often images were forgotten (Toneva et al., ICLR 2019, arXiv 1812.05159).
    """

    name = "calibration"
    Settings = CalibrationSettings
    section = PanelSection(
        "Calibration, forgetting",
        (
            Panel("Calibration error", ("calibration/ece",), unit="share"),
            Panel("Forgetting events of an image", ("forgetting/mean_events",)),
            Panel("Never learned; never forgotten", ("forgetting/never_learned", "forgetting/unforgettable")),
        ),
    )

    def depends_on(
        self, moment: Moment, run: AnalysedRun, settings: CalibrationSettings
    ) -> Mapping[str, Any]:
        """How many epochs were tracked by then."""
        epochs = run.facts(moment).epochs
        return {"tracked": len(tracked_epochs(run.folder, run.job.recipe.budget, epochs))}

    def compute(self, inputs: Inputs, settings: CalibrationSettings) -> Result:
        """Confidence and prediction of each validation image, and of tracked epochs the forgetting events."""
        data = inputs.data
        batches = data.batches("val", torch.arange(len(data.val_labels)))
        logits = extract(inputs.network(), batches, (), max_features=1, device=inputs.device).logits
        confidence, predictions = logits.double().softmax(dim=1).max(dim=1)
        accuracy = per_class_accuracy(predictions, data.val_labels, data.images.classes)
        numbers = {
            "images": len(data.val_labels),
            "top1": 100 * float((predictions == data.val_labels).double().mean()),
            "ece": expected_calibration_error(logits, data.val_labels, bins=settings.bins),
            "nll": negative_log_likelihood(logits, data.val_labels),
            "confidence": float(confidence.mean()),
            "per_class_top1": [100 * share for share in accuracy.tolist()],
        }
        arrays: dict[str, Any] = {
            "confidence": confidence.numpy().astype(np.float32),
            "predictions": predictions.numpy().astype(np.int32),
            "labels": data.val_labels.numpy().astype(np.int32),
        }
        folder = inputs.moment.run
        if positions := tracked_epochs(folder, inputs.recipe.budget, inputs.epochs):
            numbers["forgetting"], arrays["forgetting_events"] = _forgetting(folder, positions)
        return Result(numbers, arrays)

    def scalars(self, result: Mapping[str, Any]) -> Mapping[str, float | None]:
        """Errors of confidence, and how much was forgotten."""
        forgotten = result.get("forgetting", {})
        return {
            **{f"calibration/{name}": result[name] for name in ("ece", "nll", "top1", "confidence")},
            **{
                f"forgetting/{name}": forgotten.get(name)
                for name in ("mean_events", "never_learned", "unforgettable")
            },
        }


def _forgetting(run: AnyPath, positions: Sequence[Position]) -> tuple[dict[str, Any], Any]:
    """How often validation images went from right to wrong between the epochs that were tracked."""
    store = Store(run, run.name)
    kept = [right for right in map(store.examples, positions) if right is not None]
    found = forgetting_events(torch.from_numpy(np.stack(kept)))
    order = found.events.argsort(stable=True, descending=True)[:FORGOTTEN_LISTED]
    numbers = {
        "epochs": len(kept),
        "mean_events": float(found.events.double().mean()),
        "never_learned": float((~found.learned).double().mean()),
        "unforgettable": float(found.unforgettable.double().mean()),
        "most_forgotten": [{"index": int(i), "events": int(found.events[i])} for i in order],
    }
    return numbers, found.events.numpy().astype(np.int32)


def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of -log p(label), in nats, in float64. logits: (N, classes); labels: (N,)."""
    check_logits(logits, labels)
    return float(F.cross_entropy(logits.double(), labels))


@dataclass(frozen=True, eq=False)
class Forgetting:
    """What became of N examples over training. An example is unforgettable when learned with 0 events.

    events: int64 (N,), how often an example went from right to wrong; 0 too for one never learned.
    learned: bool (N,), whether it was ever right.
    """

    events: Tensor
    learned: Tensor

    @property
    def unforgettable(self) -> Tensor:
        """Bool (N,): learned and never forgotten."""
        return self.learned & (self.events == 0)


def forgetting_events(correct: Tensor) -> Forgetting:
    """Forgetting events of each example from its correctness by epoch, bool (epochs, N).

    Source: Toneva et al., ICLR 2019, arXiv 1812.05159, section 3 (there at each presentation of an example).
    """
    return Forgetting(events=(correct[:-1] & ~correct[1:]).sum(dim=0), learned=correct.any(dim=0))
