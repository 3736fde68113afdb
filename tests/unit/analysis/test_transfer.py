"""Transfer and few-shot in this process: numbers that direct calls confirm, made once, compared by seed."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from seal_ray.analysis.evaluations import find_destination, is_evaluation, load_evaluation, make_evaluation
from seal_ray.analysis.fewshot import episodes, score_episodes, unit_length
from seal_ray.analysis.moments import Moment
from seal_ray.analysis.probe import probe
from seal_ray.analysis.run import score_moments, score_weights
from seal_ray.analysis.scores import transfer_columns, widen
from seal_ray.analysis.tasks import TaskOutcome, read_arrays, read_result, result_path
from seal_ray.data.augment import normalise
from seal_ray.data.images import Images
from seal_ray.data.prepare import prepare
from seal_ray.data.prepared import load_dataset
from seal_ray.data.sources import open_source
from seal_ray.errors import CheckpointError, ConfigError, DataError
from seal_ray.networks import build
from seal_ray.recipe import load_job
from seal_ray.runs.export import export
from seal_ray.runs.folder import Store
from seal_ray.sweeps.leaderboard import to_csv
from seal_ray.sweeps.results import SweepRuns, write_results
from seal_ray.sweeps.tune import train_sweep
from tests.sweeps import screen, small_sweep
from tests.unit.analysis.conftest import run_of

# Features of networks trained for seconds are nearly collinear, and the smallest decays take long.
pytestmark = pytest.mark.filterwarnings("ignore:.* logistic regressions did not converge")

PROBE = {"fraction": 0.5, "seed": 3}
EPISODES = {"shots": [2, 5], "episodes": 12, "ways": 3, "queries": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two data sets that the runs were not trained on: digits of other classes, as folders."""
    root = tmp_path_factory.mktemp("targets")
    source = open_source("digits")
    for split, samples, most in (("train", source.train, 10), ("val", source.val, 5)):
        counts = Counter[int]()
        for sample in samples:
            if sample.label < 6 or counts[sample.label] >= most:
                continue
            counts[sample.label] += 1
            path = root / "images" / split / str(sample.label) / f"{counts[sample.label]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(sample.read()).save(path)
    for name, size in (("others", 32), ("small", 16)):
        source = open_source("folder", train=root / "images/train", val=root / "images/val", size=size)
        prepare(source, root / "data" / name)
    return root / "data"


def ask(path: Path, kind: Any, data: Path, *targets: str, **asked: Any) -> tuple[list[TaskOutcome], str]:
    """The outcomes of an evaluation in this process, and what it printed."""
    fields = {**(PROBE if kind == "transfer" else EPISODES), **asked.pop("fields", {})}
    evaluation = make_evaluation(kind, targets=list(targets), **fields)
    printed = io.StringIO()
    console = Console(file=printed, width=120, soft_wrap=True)
    return score_moments(path, console, evaluation, data=data, in_process=True, **asked), printed.getvalue()


def statuses(outcomes: Sequence[TaskOutcome]) -> Counter[str]:
    return Counter(outcome.status for outcome in outcomes)


def result(moment: Moment, what: str) -> dict[str, Any]:
    held = read_result(moment, what)
    assert held is not None
    return held


def by_hand(moment: Moment, target: Path, layer: str) -> dict[str, tuple[Tensor, Tensor]]:
    """What enters the classifier, or the maps that a stage gives averaged, and labels, of each split."""
    job = load_job(moment.run / "job.yaml")
    trained_on = load_dataset(Path(job.recipe.data.path))
    model = job.recipe.model
    network = build(model.arch, classes=4, stem=model.stem, width=model.width, generator=torch.Generator())
    network.load_state_dict(Store(moment.run, moment.run.name).moment(moment.name, moment.generation).weights)
    network.eval()
    seen: list[Tensor] = []
    if layer == "penultimate":
        network.fc.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    else:
        getattr(network, layer).register_forward_hook(lambda module, args, output: seen.append(output))
    found = {}
    images = Images.from_dataset(load_dataset(target), loader="torch")
    for split in ("train", "val"):
        loader = images.open(split, 10_000)  # type: ignore[arg-type]
        (pixels,) = loader.batches(np.arange(len(loader.labels)))
        with torch.inference_mode():
            network(normalise(pixels, trained_on.mean, trained_on.std, torch.contiguous_format))
        found[split] = (seen.pop().flatten(1), torch.from_numpy(loader.labels))
    return found


@pytest.mark.parametrize("layer", ["penultimate", "layer3"])
def test_a_probe_is_that_of_features_extracted_by_hand(storage: Path, data: Path, layer: str) -> None:
    run = run_of(storage, "seal")
    outcomes, printed = ask(run, "transfer", data, "others", fields={"layer": layer})
    assert statuses(outcomes) == {"computed": 1}
    moment = Moment(run, 2, "relearned")
    found = by_hand(moment, data / "others", layer)
    expected = probe(*found["train"], *found["val"], classes=4, holdout=0.2, fraction=0.5, seed=3)
    held = result(moment, "transfer-others")
    numbers = held["result"]
    assert numbers["top1"] == 100 * expected.top1
    assert numbers["weight_decay"] == expected.weight_decay
    assert list(numbers["holdout_top1"].values()) == [100 * share for share in expected.holdout.values()]
    assert numbers["train_images"] == 20
    assert numbers["features"] == found["train"][0].shape[1]
    assert numbers["per_class_top1"] == [100 * share for share in expected.per_class.tolist()]
    assert f"{numbers['top1']:.2f}" in printed
    digits = load_dataset(Path(load_job(run / "job.yaml").recipe.data.path))
    assert numbers["normalised_with"] == {"of": "digits", "mean": list(digits.mean), "std": list(digits.std)}
    assert numbers["target"]["size"] == 32
    assert numbers["target"]["images"] == {"train": 40, "val": 20}
    assert (held["what"], held["epochs"], held["settings"]["layer"]) == ("transfer-others", 6, layer)


@pytest.mark.parametrize("head", ["logistic", "prototype"])
def test_few_shot_accuracies_are_those_of_features_extracted_by_hand(
    storage: Path, data: Path, head: Any
) -> None:
    run = run_of(storage, "llf")
    _, printed = ask(run, "fewshot", data, "others", fields={"head": head}, moments=["g001-relearned"])
    moment = Moment(run, 1, "relearned")
    found = by_hand(moment, data / "others", "penultimate")
    features = torch.cat([found["train"][0], found["val"][0]])
    labels = torch.cat([found["train"][1], found["val"][1]])
    shots = result(moment, "fewshot-others")["result"]["shots"]
    assert list(shots) == ["2", "5"]
    arrays = read_arrays(moment, "fewshot-others")
    for count in (2, 5):
        drawn = episodes(labels, seed=0, shots=count, count=12, ways=3, queries=4)
        expected = score_episodes(unit_length(features), drawn, head=head)
        accuracies = arrays[f"accuracies_{count}"]
        assert accuracies.tolist() == expected.accuracies.tolist()
        assert shots[str(count)]["top1"] == pytest.approx(100 * accuracies.mean())
        half = 100 * 1.96 * accuracies.std(ddof=1) / math.sqrt(12)
        assert shots[str(count)]["half_width"] == pytest.approx(half)
        assert f"{shots[str(count)]['half_width']:.2f}" in printed


def test_only_what_is_missing_or_asked_otherwise_is_computed(storage: Path, data: Path) -> None:
    run = run_of(storage, "normal")
    first, _ = ask(run, "transfer", data, "others", "small", moments=["relearned"])
    assert statuses(first) == {"computed": 6}
    result_path(Moment(run, 1, "relearned"), "transfer-small").unlink()
    second, _ = ask(run, "transfer", data, "small", "others", moments=["relearned"])
    assert statuses(second) == {"known": 5, "computed": 1}
    third, _ = ask(run, "transfer", data, "others", fields={"fraction": 1.0})
    assert statuses(third) == {"computed": 1}
    assert third[0].moment == "g002-relearned"


def test_in_process_means_without_ray(storage: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str | None) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("seal_ray.analysis.run.ray_session", refuse)
    run = run_of(storage, "normal")
    assert statuses(ask(run, "transfer", data, "others")[0]) == {"computed": 1}
    with pytest.raises(ConfigError, match="--in-process: works without Ray"):
        ask(run, "transfer", data, "others", workers=2)


def test_moments_of_equal_weights_are_evaluated_once(storage: Path, data: Path) -> None:
    outcomes, printed = ask(storage, "transfer", data, str(data / "others"), moments=["g000-relearned"])
    assert statuses(outcomes) == {"computed": 1, "copied": 2}
    assert "copied: same weights as " in printed
    held = [
        result(Moment(run_of(storage, one), 0, "relearned"), "transfer-others")
        for one in ("normal", "llf", "seal")
    ]
    assert held[0]["result"] == held[1]["result"] == held[2]["result"]
    assert sum(one["copied_from"] is None for one in held) == 1


def test_what_is_wrong_with_a_data_set_or_a_moment_stays_with_it(storage: Path, data: Path) -> None:
    run = run_of(storage, "seal")
    weights = run / "moments/g002-relearned/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    outcomes, printed = ask(run, "transfer", data, "others", "cub200", moments=["relearned"])
    failed = {(one.what, one.moment): one.reason for one in outcomes if one.status == "failed"}
    assert set(failed) == {("transfer-cub200", ""), ("transfer-others", "g002-relearned")}
    command = f"`seal-ray data prepare cub200 --to {data / 'cub200'} --source PATH`"
    assert failed["transfer-cub200", ""] == f"cub200: is not prepared in {data}; run {command}"
    assert "truncated or altered" in failed["transfer-others", "g002-relearned"]
    assert f"transfer-cub200: failed: cub200: is not prepared in {data}" in printed
    assert statuses(outcomes) == {"failed": 2, "computed": 2}


def test_a_layer_that_there_is_not_and_too_few_images_fail(storage: Path, data: Path) -> None:
    run = run_of(storage, "normal")
    outcomes, _ = ask(run, "transfer", data, "others", fields={"layer": "layer9"})
    assert "layer 'layer9' is not a module of ResNet; its stages are conv1" in outcomes[0].reason
    outcomes, _ = ask(run, "fewshot", data, "others", fields={"shots": [12]})
    assert "class 0 has 15 images, but 12 shots and 4 queries need 16" in outcomes[0].reason
    outcomes, _ = ask(run, "fewshot", data, "others", fields={"ways": 5})
    assert "ways: 5, but there are only 4 classes" in outcomes[0].reason
    with pytest.raises(ConfigError, match=r"--moments g009-relearned: no run .* has such a moment"):
        ask(run, "transfer", data, "others", moments=["g009-relearned"])


def test_data_sets_are_found_by_path_folder_and_source(trained: Path, data: Path, tmp_path: Path) -> None:
    assert find_destination("others", data).dataset == find_destination(str(data / "others"), data).dataset
    with pytest.raises(ConfigError, match=r"folder: is prepared 2 times, in .*others, .*small; name one"):
        find_destination("folder", data)
    shutil.copytree(data / "small", tmp_path / "data/mine")
    assert find_destination("folder", tmp_path / "data").dataset.folder == tmp_path / "data/mine"
    with pytest.raises(DataError, match="holds no data set"):
        find_destination(f"{tmp_path}/nothing", data)
    with pytest.raises(ConfigError, match="did you mean 'flowers102'"):
        find_destination("flower102", data)
    shutil.copytree(data / "small", tmp_path / "small")
    with pytest.raises(ConfigError, match="are both called small"):
        ask(trained, "transfer", data, "small", str(tmp_path / "small"))


def test_weights_from_outside_are_judged_as_the_run_s_own(storage: Path, data: Path, tmp_path: Path) -> None:
    run = run_of(storage, "seal")
    moment = Moment(run, 2, "relearned")
    file = tmp_path / "theirs.safetensors"
    export(run, file)
    trained_on = load_job(run / "job.yaml").recipe.data.path
    printed = io.StringIO()
    for kind, fields in (("transfer", PROBE), ("fewshot", EPISODES)):
        ask(run, kind, data, "others")
        evaluation = make_evaluation(kind, targets=["others", "isic"], **fields)  # type: ignore[arg-type]
        for expected in ("computed", "known"):
            outcomes = score_weights(
                file, "resnet18", evaluation, Console(file=printed), data=data, trained_on=trained_on
            )
            assert statuses(outcomes) == {expected: 1, "failed": 1}
        held = json.loads((tmp_path / f"theirs-{kind}-others.json").read_text())
        assert held["result"] == result(moment, f"{kind}-others")["result"]
        assert held["weights_sha256"] == result(moment, f"{kind}-others")["weights_sha256"]
    assert f"{result(moment, 'transfer-others')['result']['top1']:.2f}" in printed.getvalue()
    assert "isic: is not prepared" in printed.getvalue()
    with pytest.raises(CheckpointError, match="is not a state dict of resnet50"):
        score_weights(file, "resnet50", evaluation, Console(file=printed), data=data)
    imagenet = make_evaluation("transfer", targets=["others"], **PROBE)
    score_weights(file, "resnet18", imagenet, Console(file=printed), data=data)
    held = json.loads((tmp_path / "theirs-transfer-others.json").read_text())
    assert held["result"]["normalised_with"]["mean"] == [0.485, 0.456, 0.406]


def test_an_evaluation_is_a_wandb_run_of_its_own(
    storage: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seal_ray.tracking.wandb.WANDB_TIMEOUT", 250.0)  # it ends when W&B has written all
    run = run_of(storage, "normal")
    job = (run / "job.yaml").read_text()
    (run / "job.yaml").write_text(re.sub(r"wandb: '?off'?", "wandb: offline", job))
    ask(run, "fewshot", data, "others", "small")
    (log,) = (run / "analysis/wandb").glob(f"offline-run-*/run-{run.name}-fewshot.wandb")
    text = log.read_bytes()
    for said in (b"fewshot/others/2_shots", b"fewshot/small/5_shots", b"global_epoch", b"parent"):
        assert said in text


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> SweepRuns:
    """Two methods over two seeds."""
    root = tmp_path_factory.mktemp("seeds")
    prepare(open_source("digits"), root / "digits", classes=4, per_class=24)
    runs = small_sweep(
        root / "digits",
        root / "runs",
        recipe={"budget": {"epochs": 2, "generation_length": 1}},
        axes={"method": ["normal", "llf"]},
        seeds=2,
    )
    train_sweep(runs, screen()[0], share=True, concurrent=None, in_process=True)
    write_results(runs)
    return runs


def test_a_sweep_s_settings_are_compared_by_seed(seeds: SweepRuns, data: Path) -> None:
    file = seeds.folder.parent.parent.parent / "small.yaml"
    for kind in ("transfer", "fewshot"):
        outcomes, printed = ask(file, kind, data, "others", "small")
        assert statuses(outcomes) == {"computed": 8}
        tables = [line for line in printed.splitlines() if not line.startswith(("[", "  each p"))]
        assert all(len(line) <= 120 for line in tables)

    def top1(method: str, seed: int, what: str, shots: str = "") -> float:
        (run,) = seeds.folder.parent.parent.glob(f"{method}-s{seed}-*")
        found = result(Moment(run, 1, "relearned"), what)["result"]
        return float(found["shots"][shots]["top1"] if shots else found["top1"])

    columns = transfer_columns(seeds)
    assert [column.name for column in columns] == [
        *("fewshot_others_2", "fewshot_others_5", "fewshot_small_2", "fewshot_small_5"),
        *("transfer_others", "transfer_small"),
    ]
    for column in columns:
        what, shots = f"{column.kind}-{column.target}", str(column.shots or "")
        normal, llf = ([top1(method, seed, what, shots) for seed in (0, 1)] for method in ("normal", "llf"))
        first, second = column.lines
        assert (first.setting["method"], first.is_baseline, first.difference) == ("normal", True, None)
        assert first.top1 is not None
        assert second.top1 is not None
        assert second.difference is not None
        assert first.top1.mean == pytest.approx(np.mean(normal))
        assert second.top1.mean == pytest.approx(np.mean(llf))
        differences = [ours - theirs for ours, theirs in zip(llf, normal, strict=True)]
        assert second.difference.mean == pytest.approx(np.mean(differences))
        assert second.top1.high is second.difference.low is None  # two seeds

    rows = list(csv.DictReader(io.StringIO((seeds.folder / "fewshot.csv").read_text())))
    assert [(row["target"], row["shots"], row["method"]) for row in rows[:3]] == [
        *(("others", "2", "normal"), ("others", "2", "llf"), ("others", "5", "normal")),
    ]
    assert len(rows) == 8
    assert float(rows[1]["top1"]) == columns[0].lines[1].top1.mean  # type: ignore[union-attr]
    assert (seeds.folder / "transfer.md").read_text().count("\n") == 8
    written = json.loads((seeds.folder / "transfer.json").read_text())
    assert len(written["runs"]) == 8
    lines, _ = write_results(seeds)
    wide = list(csv.DictReader(io.StringIO(widen(to_csv(lines), columns))))
    assert float(wide[1]["transfer_small"]) == columns[5].lines[1].top1.mean  # type: ignore[union-attr]
    assert wide[0]["transfer_small_difference"] == ""
    assert float(wide[1]["fewshot_small_5_difference"]) == columns[3].lines[1].difference.mean  # type: ignore[union-attr]
    assert wide[1]["top1"] == str(lines[1].top1.mean)  # type: ignore[union-attr]


def test_runs_that_were_not_evaluated_alike_are_left_out(seeds: SweepRuns, data: Path) -> None:
    file = seeds.folder.parent.parent.parent / "small.yaml"
    ask(file, "transfer", data, "others")
    first, second, third, _ = (one.store.folder for one in seeds.planned)
    ask(second, "transfer", data, "others", fields={"fraction": 1.0})
    result_path(Moment(third, 1, "relearned"), "transfer-others").unlink()
    (column,) = (one for one in transfer_columns(seeds, ["transfer"]) if one.target == "others")
    normal, llf = column.lines
    assert (normal.finished, llf.finished) == (1, 1)
    assert normal.top1 is not None
    assert normal.top1.mean == result(Moment(first, 1, "relearned"), "transfer-others")["result"]["top1"]
    assert normal.problems == (
        f"{second.name}: not evaluated: on others, its settings differ from the others'",
    )
    assert llf.problems == (f"{third.name}: not evaluated: evaluate it too",)
    _, printed = ask(file, "transfer", data, "others")
    assert "not evaluated" not in printed


def test_evaluation_files_are_valid_and_their_faults_are_said(tmp_path: Path) -> None:
    jobs = Path(__file__).parents[3] / "jobs"
    transfer = load_evaluation(jobs / "evaluations/transfer.yaml")
    assert transfer.targets == ("cub200", "aircraft", "dogs", "flowers102", "mit67")
    assert transfer == make_evaluation("transfer", targets=list(transfer.targets))
    fewshot = load_evaluation(jobs / "evaluations/fewshot.yaml")
    assert fewshot == make_evaluation("fewshot", targets=["cropdisease", "eurosat", "isic", "chestx"])
    assert is_evaluation(jobs / "evaluations/fewshot.yaml")
    assert not is_evaluation(jobs / "sweeps/quickstart.yaml")
    assert not is_evaluation(jobs / "runs/quickstart/seal.yaml")
    letters = {load_evaluation(file).kind for file in (jobs / "evaluations").glob("letters-*.yaml")}
    assert letters == {"transfer", "finetune", "fewshot"}
    changed = make_evaluation("fewshot", jobs / "evaluations/fewshot.yaml", shots=[10, 1], targets=["a"])
    assert changed.shots == (1, 10)  # type: ignore[union-attr]
    file = tmp_path / "mine.yaml"
    for text, said in {
        "kind: probe\ntargets: [a]": r"mine.yaml:1: kind: must be one of transfer, finetune, fewshot, not",
        "kind: transfer\ntargets: []": r"mine.yaml:2: targets: ",
        "kind: transfer\ntargets: [a]\nshots: [5]": r"mine.yaml:3: shots: unknown field",
        "kind: fewshot\ntargets: [a]\nshots: [5, 0]": r"mine.yaml:3: shots.1: must be at least 1, not 0",
        "kind: transfer\ntargets: [a]\nfraction: 0": r"mine.yaml:3: fraction: must be greater than 0",
    }.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_evaluation(file)
    with pytest.raises(
        ConfigError, match="is an evaluation of kind transfer; give it to `seal-ray transfer`"
    ):
        make_evaluation("fewshot", jobs / "evaluations/transfer.yaml")
    with pytest.raises(ConfigError, match="--on: name data sets, such as --on flowers102"):
        make_evaluation("fewshot")
    with pytest.raises(ConfigError, match=r"--fraction: fraction: must be at most 1, not 2.0"):
        make_evaluation("transfer", targets=["a"], fraction=2.0)
