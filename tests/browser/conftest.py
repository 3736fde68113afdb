"""A headless Chromium, and pages of storages for it to open from disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pages import HTML, analysed_sweep, copied, many_runs, noisy_sweep, page_of, renamed_class

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The browser; without one, or what drives it, the tests are skipped and say so."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page in the browser, what it has asked for, and what it has complained of."""

    page: Any
    path: Path
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens a page from disk, which must ask for nothing but itself, and complain of nothing."""
    opened: list[tuple[Opened, Any]] = []

    def visit(path: Path, *, width: int = 1280, scheme: str = "light", scripts: bool = True) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=scripts
        )
        one = Opened(context.new_page(), path)
        one.page.on("request", lambda request: one.requests.append(request.url))
        one.page.on("console", lambda message: one.complaints.append(message.text))
        one.page.on("pageerror", lambda error: one.complaints.append(str(error)))
        one.page.goto(path.as_uri())
        opened.append((one, context))
        return one

    yield visit
    for one, context in opened:
        asked = [url for url in one.requests if not url.startswith("data:")]
        assert asked == [one.path.as_uri()]
        assert one.complaints == []
        context.close()


@pytest.fixture(scope="session")
def sweep(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small sweep of two seeds, with all analyses."""
    return analysed_sweep(digits, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session")
def report(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that sweep."""
    folder = tmp_path_factory.mktemp("report")
    page_of(sweep, folder)
    return folder / "report.html"


@pytest.fixture(scope="session")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep with label noise, in which stopping early does what forgetting does."""
    folder = tmp_path_factory.mktemp("noisy")
    page_of(noisy_sweep(folder / "runs", labels=("normal", "stopped early", "llf", "seal")), folder)
    return folder / "report.html"


@pytest.fixture(scope="session", params=["broken", "bare", "one", "many", "markup"])
def odd_report(request: pytest.FixtureRequest, sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of what is not as it should be: see the names of the parameters."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    storage = copied(sweep.parent.parent, folder)
    target = storage
    if kind == "broken":
        for path in (*storage.glob("llf-*/metrics.jsonl"), *storage.glob("seal-s1-*/job.yaml")):
            path.write_text("{")
        for path in storage.glob("*/analysis/*.npz"):
            path.write_bytes(b"")
        target = storage / "sweeps" / "small"
    elif kind == "bare":
        for path in storage.glob("*/analysis"):
            shutil.rmtree(path)
    elif kind == "one":
        (target,) = storage.glob("seal-s0-*")
    elif kind == "many":
        target = many_runs(storage, folder / "many", settings=20, seeds=10, epochs=60)
    else:
        target = storage / "sweeps" / "small"
        renamed_class(target, HTML)
        results = target / "results.json"
        results.write_text(results.read_text().replace('"seal"', '"<img src=x onerror=alert(1)>"'))
    page_of(target, folder)
    return folder / "report.html"
