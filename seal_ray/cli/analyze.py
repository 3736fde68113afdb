"""`seal-ray transfer` and `seal-ray fewshot`: what was learned, judged on other data sets."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from seal_ray.cli.options import Address, Storage, Target, Trust, out, trust_plugins
from seal_ray.errors import ConfigError

if TYPE_CHECKING:
    from seal_ray.analysis.evaluations import Evaluation


class Mode(StrEnum):
    """What `seal-ray transfer` does with another data set."""

    probe = "probe"
    finetune = "finetune"


File = Annotated[Optional[Path], typer.Option("--evaluation", help="YAML that says what to do.")]  # noqa: UP045
Folder = Annotated[Path, typer.Option(help="Where data sets lie that are called by name.")]
Layer = Annotated[Optional[str], typer.Option(help="Stage whose features are used; default: penultimate.")]  # noqa: UP045
Seed = Annotated[Optional[int], typer.Option(help="Which images or episodes are drawn.")]  # noqa: UP045
Moments = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Names, or labels such as g002-relearned; default: the last relearned."),
]
Weights = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="Weights from elsewhere (.safetensors or .pth) instead of a run's.", show_default=False
    ),
]
Arch = Annotated[Optional[str], typer.Option(help="With --weights: the network, such as resnet50.")]  # noqa: UP045
TrainedOn = Annotated[
    str, typer.Option(help="With --weights: imagenet, or the folder of the data set they were trained on.")
]
Actors = Annotated[Optional[int], typer.Option("--workers", min=1, help="Actors at once.")]  # noqa: UP045
InProcess = Annotated[bool, typer.Option("--in-process", help="In this process, without Ray.")]


def transfer(
    target: Target = None,
    to: Annotated[Optional[str], typer.Option(help="Data sets, separated by commas.")] = None,  # noqa: UP045
    evaluation: File = None,
    mode: Annotated[
        Optional[Mode],  # noqa: UP045
        typer.Option(help="Fit a probe to frozen features, or train all weights; default: probe."),
    ] = None,
    fraction: Annotated[Optional[float], typer.Option(help="Share of the train images.")] = None,  # noqa: UP045
    holdout: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="probe: share of them that chooses the weight decay."),
    ] = None,
    layer: Layer = None,
    epochs: Annotated[Optional[int], typer.Option(help="finetune: epochs to train.")] = None,  # noqa: UP045
    lr: Annotated[Optional[float], typer.Option(help="finetune: learning rate of the first.")] = None,  # noqa: UP045
    seed: Seed = None,
    data: Folder = Path("data"),
    moments: Moments = None,
    weights: Weights = None,
    arch: Arch = None,
    trained_on: TrainedOn = "imagenet",
    storage: Storage = None,
    workers: Actors = None,
    address: Address = None,
    in_process: InProcess = False,
    trusted: Trust = False,
) -> None:
    """Fit linear probes to frozen features of other data sets, or fine-tune. Again: only what is missing."""
    from seal_ray.analysis.evaluations import make_evaluation, transfer_kind

    asked = make_evaluation(
        transfer_kind(mode, evaluation),
        evaluation,
        targets=_listed(to),
        fraction=fraction,
        holdout=holdout,
        layer=layer,
        epochs=epochs,
        lr=lr,
        seed=seed,
    )
    where = {"storage": storage, "workers": workers, "address": address, "in_process": in_process}
    _carry_out(asked, target, data, moments, (weights, arch, trained_on), where, trusted)


def fewshot(
    target: Target = None,
    on: Annotated[Optional[str], typer.Option(help="Data sets, separated by commas.")] = None,  # noqa: UP045
    evaluation: File = None,
    shots: Annotated[Optional[str], typer.Option(help="Images a class, such as 5,20,50.")] = None,  # noqa: UP045
    episodes: Annotated[Optional[int], typer.Option(help="Episodes of each number of shots.")] = None,  # noqa: UP045
    ways: Annotated[Optional[int], typer.Option(help="Classes of an episode.")] = None,  # noqa: UP045
    queries: Annotated[Optional[int], typer.Option(help="Images a class to recognise.")] = None,  # noqa: UP045
    head: Annotated[Optional[str], typer.Option(help="logistic or prototype.")] = None,  # noqa: UP045
    layer: Layer = None,
    seed: Seed = None,
    data: Folder = Path("data"),
    moments: Moments = None,
    weights: Weights = None,
    arch: Arch = None,
    trained_on: TrainedOn = "imagenet",
    storage: Storage = None,
    workers: Actors = None,
    address: Address = None,
    in_process: InProcess = False,
    trusted: Trust = False,
) -> None:
    """Learn new classes from a few images each, on frozen features; every method gets the same episodes."""
    from seal_ray.analysis.evaluations import make_evaluation

    asked = make_evaluation(
        "fewshot",
        evaluation,
        targets=_listed(on),
        shots=_numbers(shots),
        episodes=episodes,
        ways=ways,
        queries=queries,
        head=head,
        layer=layer,
        seed=seed,
    )
    where = {"storage": storage, "workers": workers, "address": address, "in_process": in_process}
    _carry_out(asked, target, data, moments, (weights, arch, trained_on), where, trusted)


def _carry_out(
    asked: Evaluation,
    target: Any,
    data: Path,
    moments: str | None,
    outside: tuple[Path | None, str | None, str],
    where: dict[str, Any],
    trusted: bool,
) -> None:
    from seal_ray.analysis.run import score_weights, summary, transfer

    weights, arch, trained_on = outside
    if (target is None) == (weights is None) or (weights is None) != (arch is None):
        raise ConfigError("give a run, a storage folder or a sweep; or --weights FILE with --arch NAME")
    if weights is not None and arch is not None:
        if moments or any(where.values()) or trusted:
            raise ConfigError(
                "--weights: is judged in this process; --moments, --storage, --workers, --address, "
                "--in-process and --trust-plugins are for runs"
            )
        outcomes = score_weights(weights, arch, asked, out, data=data, trained_on=trained_on)
    else:
        assert target is not None
        if trained_on != "imagenet":
            raise ConfigError("--trained-on: is for --weights; a run knows what it was trained on")
        trust_plugins(target, trusted)
        outcomes = transfer(target, out, asked, data=data, moments=_listed(moments), **where)
    out.print(summary(outcomes), markup=False)
    if any(outcome.status in ("failed", "stopped") for outcome in outcomes):
        raise typer.Exit(1)


def _listed(text: str | None) -> list[str] | None:
    return None if text is None else text.split(",")


def _numbers(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(one) for one in text.split(",")]
    except ValueError:
        raise ConfigError(f"--shots {text}: are whole numbers, such as 5,20,50") from None
