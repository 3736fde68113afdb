"""The whole page: its numbers are those of results.json, nothing is loaded, no name becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from seal_ray import cli
from seal_ray.analysis.moments import find_runs
from seal_ray.analysis.scores import widen_results
from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.reports.page import write_report
from seal_ray.reports.study import find_source, read_study
from seal_ray.sweeps.file import load_sweep
from seal_ray.sweeps.results import prepare_sweep, write_results
from tests.pages import HTML, many_runs, noisy_sweep, page_of, renamed_class


class Reader(HTMLParser):
    """Tables, and all their rows, by the id of their section; its text; every tag with its attributes."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.section = ""
        self.rows: dict[str, list[list[str]]] = {}
        self.tables: dict[str, list[list[list[str]]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self.tags.append((tag, held))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = str(held["id"])
        if tag == "table":
            self.tables.setdefault(self.section, []).append([])
        if tag == "tr":
            row: list[str] = []
            self.rows.setdefault(self.section, []).append(row)
            self.tables[self.section][-1].append(row)
        if tag in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # everything that is opened is closed, in order

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data
        if {"td", "th"} & set(self.open) and "title" not in self.open:
            self.rows[self.section][-1][-1] += data


def results(sweep: Path) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads((sweep / "results.json").read_text())
    return found


def test_the_leaderboard_says_what_results_json_says(small: Path, tmp_path: Path) -> None:
    reader = Reader(page_of(small, tmp_path))
    rows, others = reader.tables["leaderboard"]
    recipe = read_study(find_source(small)).runs[0].job.recipe
    count = json.loads((Path(recipe.data.path) / "dataset.json").read_text())["splits"]["val"]["count"]
    assert f" {count:,} validation images: one is {100 / count:.2g} points." in reader.text["leaderboard"]
    lines = json.loads((small / "results.json").read_text())["lines"]
    assert [row[0] for row in rows] == ["method", *(line["setting"]["method"] for line in lines)]
    for row, line in zip(rows[1:], lines, strict=True):
        shown = dict(zip(rows[0], (cell.replace("−", "-") for cell in row), strict=True))
        assert shown["n"] == str(line["finished"])
        assert shown["top-1 %"] == f"{line['top1']['mean']:.2f}"
        assert shown["95 % interval"] == "–"  # two seeds
        assert line["top1"]["low"] is line["top1"]["high"] is None
        assert shown["trained"] == str(line["epochs_trained"])
        assert shown["shared"] == str(line["epochs_shared"])
        if line["is_baseline"]:
            assert shown["difference"] == "baseline"
        else:
            assert shown["difference"] == f"{line['difference']['mean']:+z.2f}"
            assert shown["p"] == f"{line['difference']['p']:.3g}"
    assert others[0] == ["method", "seeds", "after 1 %", "after 3 %", "best %"]
    for other, line in zip(others[1:], lines, strict=True):
        assert other[:2] == [line["setting"]["method"], "2"]
        for cell, found in zip(
            other[2:], (line["after"]["1"], line["after"]["3"], line["best"]), strict=True
        ):
            assert cell == f"{found['mean']:.2f}"
        assert line["after"]["3"] == line["top1"]
    ((heads, *costs),) = reader.tables["compute"]
    assert heads == ["method", "epochs", "images", "passes", "seconds", "top-1 %", "frontier"]
    best = max(line["top1"]["mean"] for line in lines)  # all take as many passes
    for cost, line in zip(costs, lines, strict=True):
        assert line["passes"] == line["images"] > 0
        assert cost[:4] == [line["setting"]["method"], "6", *2 * [f"{line['images'] / 2:,.0f}"]]
        assert cost[4] == f"{line['seconds'] / 2:,.1f}"
        assert cost[6] == "●" * (line["top1"]["mean"] == best)


def test_accuracy_after_a_generation_is_that_of_its_last_epoch(small: Path) -> None:
    held = json.loads((small / "results.json").read_text())
    for line in held["lines"]:
        scores = []
        for run in (one for one in held["runs"] if one["setting"] == line["setting"]):
            rows = (small.parent.parent / run["run_id"] / "metrics.jsonl").read_text().splitlines()
            top1 = [json.loads(row)["val_top1"] for row in rows]
            assert run["generation_top1"] == top1[1::2]  # three generations of two epochs
            assert run["best_top1"] == max(top1)
            scores.append(top1[1])
        assert line["after"]["1"]["mean"] == pytest.approx(sum(scores) / 2)


def test_a_sweep_of_before_there_were_other_epochs_is_shown(storage: Path) -> None:
    folder = storage / "sweeps" / "small"
    held = json.loads((folder / "results.json").read_text())
    for line in held["lines"]:
        del line["after"], line["best"]
        line["top1"]["kind"] = "t"
    for run in held["runs"]:
        del run["generation_top1"]
    (folder / "results.json").write_text(json.dumps(held))
    study = read_study(find_source(folder))
    assert [line.after for line in study.lines] == [{}] * 3
    assert all(line.best is not None for line in study.lines)


def test_every_run_is_listed_with_its_accuracy_and_digest(small: Path, tmp_path: Path) -> None:
    reader = Reader(page_of(small, tmp_path))
    rows = {row[0]: row for row in reader.rows["runs"]}
    storage = small.parent.parent
    for run in json.loads((small / "results.json").read_text())["runs"]:
        last = json.loads((storage / run["run_id"] / "metrics.jsonl").read_text().splitlines()[-1])
        assert f"{run['top1']:.2f}" in next(row for row in reader.rows["runs"] if row[0] == run["run_id"])
        assert last["weights_sha256"] in reader.text["runs"]
        command = f"seal-ray train {storage / run['run_id'] / 'job.yaml'} --storage reproduced"
        assert rows[command][1] == last["weights_sha256"]


def test_all_sections_are_filled_but_that_of_a_frequency_that_does_not_vary(
    small: Path, tmp_path: Path
) -> None:
    page = page_of(small, tmp_path)
    missing = re.findall(r'<section id="(\w+)"(?:(?!</section>).)*?class="missing"', page, re.DOTALL)
    assert missing == ["absent"]
    said = Reader(page).text["absent"]
    assert "Nothing to show of forgetting frequency:" in said
    assert "seal-ray sweep jobs/sweeps/forgetting-frequency.yaml" in said
    assert 'id="memorisation"' not in page  # no label is wrong


def test_the_first_screen_has_answer_figure_and_control(tmp_path: Path) -> None:
    page = page_of(noisy_sweep(tmp_path), tmp_path)
    reader = Reader(page)
    assert list(reader.tables)[:3] == ["accuracy", "memorisation", "leaderboard"]
    assert [[cell for cell in row if "<" not in cell] for row in reader.tables["accuracy"][0]] == [
        ["", "epochs", "n", "top-1 %", "difference to the baseline", "", "p"],
        ["normal", "48", "6", "68.70 (66.94 … 70.46)", "baseline", "", "–"],
        ["normal 12", "12", "6", "86.00 (85.26 … 86.74)", "+17.30 (+16.25 … +18.35)", "", "0.0312"],
        ["llf", "48", "6", "75.50 (73.08 … 77.92)", "+6.80 (+5.75 … +7.85)", "", "0.0312"],
        ["seal", "48", "6", "85.20 (83.72 … 86.68)", "+16.50 (+14.51 … +18.49)", "", "0.0312"],
    ]  # 68.7 -+ 2.5706 sqrt(14 / 5 / 6), and so on
    assert page.index("seal ends 16.5 points higher than normal") < page.index('id="accuracy"')
    assert "Level line: where normal 12 ended, which is normal with 12 epochs." in reader.text["accuracy"]
    assert "Plain training" in page[: page.index("<main>")]


def test_what_was_memorised_is_shown_with_its_source(tmp_path: Path) -> None:
    reader = Reader(page_of(noisy_sweep(tmp_path), tmp_path))
    (table,) = reader.tables["memorisation"]
    assert [[row[0], row[1], row[2], row[4]] for row in table[1:]] == [
        ["normal", "6", "97.00", "–"],
        ["normal 12", "6", "9.00", "−88.00"],
        ["llf", "6", "60.00", "−37.00"],
        ["seal", "6", "6.00", "−91.00"],
    ]
    assert (
        "Liu et al., Early-Learning Regularization, NeurIPS 2020, arXiv 2007.00151"
        in (reader.text["memorisation"])
    )


def test_the_same_runs_give_the_same_page(small: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    assert page_of(small, tmp_path) == page_of(small, tmp_path / "again")


def test_the_yaml_the_folder_and_the_storage_of_a_sweep_agree(small: Path, tmp_path: Path) -> None:
    yaml, storage = small.parents[2] / "small.yaml", small.parent.parent
    boards = []
    for path in (yaml, small, storage):
        tables = Reader(page_of(path, tmp_path)).tables["leaderboard"]
        boards.append([sorted(map(tuple, rows)) for rows in tables])
    assert boards[0] == boards[1]
    assert boards[0][0] == boards[2][0]


def test_a_folder_compares_what_its_sweep_does(storage: Path) -> None:
    folder = storage / "sweeps" / "small"
    held = json.loads((folder / "results.json").read_text())
    assert held["baseline"] == {"method": "normal"}
    # No run of plain training has llf's lr, so the sweep compares llf with nothing.
    lr = {"normal": "0.1", "llf": "0.2", "seal": "0.1"}
    for one in (*held["lines"], *held["runs"]):
        one["setting"]["optimizer.lr"] = lr[one["setting"]["method"]]
    (folder / "results.json").write_text(json.dumps(held))
    study = read_study(find_source(folder))
    assert study.baseline == {"method": "normal"}
    assert {one.line.setting["method"]: one.line.difference is None for one in study.settings} == {
        **{"normal": True, "llf": True, "seal": False}
    }
    compared = {one.job.recipe.method.name: one.baseline is not None for one in find_runs(folder).runs}
    assert compared == {"normal": False, "llf": False, "seal": True}
    # A file of before that was written: the labels that the lines marked as baselines share.
    del held["baseline"]
    (folder / "results.json").write_text(json.dumps(held))
    assert find_source(folder).baseline == {"method": "normal", "optimizer.lr": "0.1"}


def test_results_with_other_data_sets_name_the_baseline_too(small: Path, storage: Path) -> None:
    there = f"placement.storage={json.dumps(str(storage))}"
    runs = prepare_sweep(load_sweep(small.parents[2] / "small.yaml", [there]))
    widen_results(runs, *write_results(runs))
    held = json.loads((storage / "sweeps" / "small" / "results.json").read_text())
    assert held["lines"][0]["carried"]
    assert held["baseline"] == {"method": "normal"}


def test_runs_left_out_on_other_data_sets_are_said(storage: Path, tmp_path: Path) -> None:
    (run,) = storage.glob("llf-s1-*")
    for path in run.glob("analysis/transfer-*"):
        path.unlink()
    reader = Reader(page_of(storage / "sweeps" / "small", tmp_path))
    assert f"{run.name}: not evaluated: evaluate it too" in reader.text["warnings"]
    assert [row[2] for row in reader.rows["carried"][1:4]] == ["2", "1 of 2", "2"]


def test_plain_training_in_two_settings_is_a_page_too(storage: Path, tmp_path: Path) -> None:
    for run in (*storage.glob("llf-*"), *storage.glob("seal-*")):
        shutil.rmtree(run)
    (other,) = storage.glob("normal-s1-*")
    job = yaml.safe_load((other / "job.yaml").read_text())
    job["recipe"]["seed"] = 0
    job["recipe"]["optimizer"]["lr"] = 0.3
    (other / "job.yaml").write_text(yaml.safe_dump(job))
    text = Reader(page_of(storage, tmp_path)).text[""]
    assert "Which of 2 settings ends with the highest accuracy after 6 epochs on " in text
    assert "there is no baseline" in text


def test_nothing_is_loaded_from_anywhere(small: Path, tmp_path: Path) -> None:
    page = page_of(small, tmp_path)
    reader = Reader(page)
    for tag, held in reader.tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            value = held.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, value)
        assert not [name for name in held if name.startswith("on") or name == "style"], (tag, held)
    assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", page.replace("http://www.w3.org/2000/svg", ""))
    assert "@import" not in page
    assert "url(" not in page.replace("url(#hatch)", "")


def test_style_and_script_are_allowed_by_their_hashes(small: Path, tmp_path: Path) -> None:
    page = page_of(small, tmp_path)
    policy = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[0]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy.replace("&#39;", "'")


def test_names_with_markup_are_text(digits: Path, small: Path, storage: Path, tmp_path: Path) -> None:
    sweep = storage / "sweeps" / "small"
    renamed_class(sweep, HTML)
    held = json.loads((sweep / "results.json").read_text())
    for one in (*held["lines"], *held["runs"]):
        if one["setting"]["method"] == "seal":
            one["setting"]["method"] = HTML
    (sweep / "results.json").write_text(json.dumps(held))
    (run,) = storage.glob("llf-s0-*")
    (run / "warnings.txt").write_text(f"{HTML} </script><script>alert(2)</script>\n")
    page = page_of(sweep, tmp_path)
    reader = Reader(page)
    assert [row[0] for row in reader.rows["leaderboard"]][-1] == HTML
    assert HTML not in page
    assert page.count("<script>") == 1
    alts = [held["alt"] for tag, held in reader.tags if tag == "img"]
    assert any(HTML in str(alt) for alt in alts)
    assert all(
        str(held["src"]).startswith("data:image/png;base64,") for tag, held in reader.tags if tag == "img"
    )


def test_a_broken_run_is_named_and_the_rest_is_shown(storage: Path, tmp_path: Path) -> None:
    (run,) = storage.glob("llf-s0-*")
    (run / "metrics.jsonl").write_text("{")
    (other,) = storage.glob("llf-s1-*")
    (other / "job.yaml").write_text("recipe: [")
    (third,) = storage.glob("seal-s1-*")
    (third / "status.json").write_text(
        json.dumps({"status": "diverged", "reason": "train_loss is not finite"})
    )
    for path in storage.glob("seal-s0-*/analysis/*.npz"):
        path.write_bytes(path.read_bytes()[:-20] if "depth" in path.name else b"")
    reader = Reader(page_of(storage / "sweeps" / "small", tmp_path))
    said = reader.text["warnings"]
    assert f"{run.name} is damaged" in said
    assert f"{other.name} is damaged" in said
    assert f"{third.name} is diverged: train_loss is not finite" in said
    rows = {row[0]: row for row in reader.tables["leaderboard"][0]}
    assert rows["llf"][1:3] == ["0 of 2", "–"]
    assert rows["seal"][1] == "1 of 2"
    in_storage = Reader(page_of(storage, tmp_path)).text["warnings"]
    assert f"{other.name} cannot be read and is left out" in in_storage


def test_a_storage_without_analyses_says_how_to_make_them(storage: Path, tmp_path: Path) -> None:
    for folder in storage.glob("*/analysis"):
        shutil.rmtree(folder)
    text = Reader(page_of(storage, tmp_path)).text
    assert f"seal-ray analyze {storage} --what depth" in text["absent"]
    assert f"seal-ray analyze {storage} --what curvature" in text["absent"]
    assert f"seal-ray transfer {storage} --to" in text["absent"]
    assert f"seal-ray fewshot {storage} --on" in text["absent"]
    assert "placement.track_examples: true" in text["absent"]
    assert not {"depth", "curvature", "carried", "examples"} & set(text)


RESOLVED = {"relative": 1e-3, "threshold": 0.1, "low": 0.1, "high": 0.14, "resolved": True}
OPEN = {**RESOLVED, "relative": 1e-4, "high": 0.9, "resolved": False}


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([OPEN, RESOLVED], [OPEN, {**RESOLVED, "low": 0.2, "high": 0.24}], "0.17 (0.1 … 0.24) below −1e−03"),
        ([{**OPEN, "resolved": True}, RESOLVED], [OPEN, RESOLVED], "0.12 (0.1 … 0.14) below −1e−03"),
        ([RESOLVED], [OPEN], "not resolved"),
        ([RESOLVED], None, "not resolved"),
    ],
)
def test_a_negative_mass_is_said_where_every_seed_resolves_it(
    storage: Path, tmp_path: Path, first: list[Any], second: list[Any] | None, said: str
) -> None:
    for seed, bounds in enumerate((first, second)):
        (path,) = storage.glob(f"seal-s{seed}-*/analysis/curvature-*.json")
        held = json.loads(path.read_text())
        before = {"value": 0.042, "standard_error": 0.006}  # a result of release 0.1.0
        mass = before if bounds is None else {"resolved": None, "bounds": bounds}
        held["result"]["parts"]["all"]["negative_mass"] = mass
        path.write_text(json.dumps(held))
    rows = {row[0]: row for row in Reader(page_of(storage / "sweeps" / "small", tmp_path)).rows["curvature"]}
    assert rows["setting"][-1] == "negative mass"
    assert rows["seal"][-1] == said


def test_one_run_is_a_page_too(storage: Path, tmp_path: Path) -> None:
    (run,) = storage.glob("seal-s0-*")
    reader = Reader(page_of(run, tmp_path))
    assert "How well does seal do on " in reader.text[""]
    assert re.search(
        r"seal reaches \d+\.\d\d\s% after 6 epochs \(1 seed\)", " ".join(reader.text[""].split())
    )
    assert len(reader.tables["leaderboard"][0]) == 2
    assert reader.tables["leaderboard"][0][1][4] == "–"  # no difference, since there is no baseline


def test_a_run_that_begins_after_shared_generations_was_not_resumed(small: Path, tmp_path: Path) -> None:
    storage = small.parent.parent
    assert [(path / "starts.txt").read_text() for path in storage.glob("normal-s0-*")] == ["0\n"]
    assert [(path / "starts.txt").read_text() for path in storage.glob("seal-s0-*")] == ["2\n"]
    assert "resumed" not in Reader(page_of(small, tmp_path)).text["warnings"]


def test_an_ascent_too_weak_to_forget_is_said_once(small: Path, tmp_path: Path) -> None:
    storage = small.parent.parent
    (seal,), (normal,) = storage.glob("seal-s0-*"), storage.glob("normal-s0-*")
    for page in (small, seal, storage):
        said = Reader(page_of(page, tmp_path)).text["warnings"]
        (rates,) = re.findall(r"seal: its ascent's rates add up to (\S+), in the paper to 94: likely", said)
        assert float(rates) == pytest.approx(0.5 * 0.1 * 3, abs=0.05)  # an epoch of three steps; one digit
        assert said.count("in the paper") == 1
    assert "in the paper" not in Reader(page_of(normal, tmp_path)).text["warnings"]


def test_a_resumed_run_and_a_changed_world_are_said(storage: Path, tmp_path: Path) -> None:
    (run,) = storage.glob("normal-s0-*")
    assert "resumed" not in Reader(page_of(run, tmp_path)).text["warnings"]
    (run / "starts.txt").write_text("0\n4\n")
    shutil.rmtree(run / "checkpoints")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    changed = [{**line, "workers": 1 if line["global_epoch"] < 4 else 2} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    said = Reader(page_of(run, tmp_path)).text["warnings"]
    assert f"{run.name} was resumed once, after epoch 4" in said
    assert "the world size changed, 1 then 2 workers" in said


def test_two_hundred_runs_stay_below_five_megabytes(small: Path, tmp_path: Path) -> None:
    storage = many_runs(small.parent.parent, tmp_path / "many", settings=20, seeds=10, epochs=100)
    output, study = write_report(storage, tmp_path / "report.html")
    assert len(study.runs) == 200
    assert len(study.settings) == 20
    assert output.stat().st_size < 5_000_000
    reader = Reader(output.read_text())
    assert len(reader.tables["leaderboard"][0]) == 21
    assert "The 16 best of 20 settings are drawn; all: see Leaderboard." in reader.text["accuracy"]
    ends = [[run.result.top1 or 0 for run in setting.runs] for setting in study.settings]
    best = sorted((sum(tops) / len(tops) for tops in ends), reverse=True)[:5]
    assert [row[3].split()[0] for row in reader.tables["accuracy"][0][1:]] == [f"{top:.2f}" for top in best]


def test_the_command_says_where_the_page_is(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = storage / "sweeps" / "small"
    monkeypatch.setattr(sys, "argv", ["seal-ray", "report", str(sweep)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    output = sweep / "report.html"
    assert output.read_text().startswith("<!doctype html>")
    assert capsys.readouterr().out.startswith(f"{output}: 6 runs of small, ")
    monkeypatch.setattr(sys, "argv", ["seal-ray", "report", str(sweep), "-o", str(storage)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err


def test_the_page_replaces_itself_and_nothing_else(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    page_of(small, tmp_path)
    page_of(small, tmp_path)
    output.write_text("my thesis")
    with pytest.raises(ConfigError, match="is there and is no report"):
        write_report(small, output)
    assert output.read_text() == "my thesis"
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        write_report(small, tmp_path)


def test_what_is_no_run_is_refused(storage: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        write_report(tmp_path / "nowhere", tmp_path / "report.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no runs"):
        write_report(tmp_path / "empty", tmp_path / "report.html")
    for job in storage.glob("*/job.yaml"):
        job.write_text("recipe: [")
    with pytest.raises(CheckpointError, match="no run in it can be read"):
        write_report(storage, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
