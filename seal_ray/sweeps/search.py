"""What a search suggests next, and the runs that makes: a function of its file and of results so far alone.

Results lie in the run folders. So a search that was cut off suggests the same settings again, finds their
runs trained, and goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from seal_ray.errors import CheckpointError, ConfigError
from seal_ray.recipe import ANALYSES
from seal_ray.runs.folder import moment_label
from seal_ray.sweeps.draws import Draws, Random, every_combination

if TYPE_CHECKING:
    from seal_ray.distributed.launch import Planned
    from seal_ray.storage.paths import AnyPath
    from seal_ray.sweeps.file import Search, Space, SweepRun

Outcome = float | Literal["stopped", "failed"]
"""What came of a setting: the mean of its number over its seeds; stopped or diverged; failed."""
VALUE = "value"
"""What Tune calls the number that is looked at."""


class Suggestions:
    """The settings that a search suggests, in order."""

    def __init__(self, space: Space) -> None:
        self._space, search = space, space.search
        self._suggested = 0
        self._told = 0
        self._optuna = _Optuna(search) if search.algorithm == "optuna" else None
        self._draws = _draws(search)
        self.complete = False
        """Whether all have been suggested."""
        self.problem = ""
        """Of the last setting that cannot be trained."""

    def next(self, outcome: Callable[[int], Outcome | None]) -> tuple[SweepRun, ...] | None:
        """The runs of the next setting; None where it waits for an outcome, or when there is no more.

        outcome: of an earlier setting by its place; None while it is not known. A setting that cannot be
        trained has no runs; in a grid it is a ConfigError.
        """
        if self._optuna is not None:
            while self._told <= self._suggested - self._space.search.at_once:
                known = outcome(self._told)
                if known is None:
                    return None
                self._optuna.tell(self._told, known)
                self._told += 1
        draws = None if self.complete else next(self._draws, None)
        if draws is None:
            self.complete = True
            return None
        self._suggested += 1
        self.complete = self._suggested == self._space.search.samples
        try:
            if self._optuna is not None:
                return self._optuna.ask(self._suggested - 1, self._space.suggest)
            return self._space.suggest(draws)
        except ConfigError as error:
            if self._space.search.algorithm == "grid":
                raise
            self.problem = str(error)
            return ()


def _draws(search: Search) -> Iterator[Draws]:
    """Where each setting of a grid or of independent draws comes from."""
    if search.algorithm == "grid":
        yield from every_combination(ends=False)
    else:
        for index in range(search.samples or 0):
            yield Random(np.random.default_rng([search.sample_seed, index]))


class _Optuna:
    """Optuna's sampler, as Ray Tune has it: an axis is asked for when the ones before it are known."""

    def __init__(self, search: Search) -> None:
        try:
            import optuna
            from ray.tune.search.optuna import OptunaSearch
        except ImportError as error:
            raise ConfigError(
                f"search.algorithm: optuna cannot be imported ({error}); pip install optuna"
            ) from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._drawn: Callable[[Draws], object] = lambda draws: None
        self._searcher = OptunaSearch(self._draw, metric=VALUE, mode=search.mode, seed=search.sample_seed)

    def _draw(self, trial: Any) -> None:
        self._drawn(_Trial(trial))

    def ask(self, index: int, suggest: Callable[[Draws], tuple[SweepRun, ...]]) -> tuple[SweepRun, ...]:
        made: list[tuple[SweepRun, ...]] = []
        self._drawn = lambda draws: made.append(suggest(draws))
        self._searcher.suggest(str(index))
        return made[0]

    def tell(self, index: int, outcome: Outcome) -> None:
        # Optuna takes what was stopped for worse than all that was not, and leaves out what failed.
        result = None if isinstance(outcome, str) else {VALUE: outcome}
        self._searcher.on_trial_complete(str(index), result, error=outcome == "failed")


class _Trial:
    """Draws of an Optuna trial."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def place(self, name: str, count: int) -> int:
        """See `Draws`."""
        return int(self._trial.suggest_categorical(name, list(range(count))))

    def whole(self, name: str, low: int, high: int) -> int:
        """See `Draws`."""
        return int(self._trial.suggest_int(name, low, high))

    def number(self, name: str, low: float, high: float, *, log: bool) -> float:
        """See `Draws`."""
        return float(self._trial.suggest_float(name, low, high, log=log))


class SearchRuns:
    """The runs of a search, as far as results say which there are.

    prepare: a run with its data and its folder. tries: whether what has failed before counts only when it has
    been tried again, see `ended`. measure: makes the analysis that the metric of a finished run is of;
    without it such a metric is not known until somebody has.
    """

    def __init__(self, space: Space, prepare: Callable[[SweepRun], Planned], *, tries: bool = False) -> None:
        self.space = space
        self.measure: Callable[[Planned, str], None] | None = None
        self._prepare, self._tries = prepare, tries
        self._suggestions = Suggestions(space)
        self._made: list[tuple[str, ...]] = []
        """The ids of the runs of each setting that was suggested."""
        self._outcomes: dict[int, Outcome] = {}
        self._tried: set[str] = set()
        self.runs: dict[str, tuple[SweepRun, Planned]] = {}
        """By id, in the order of suggestion."""

    @property
    def complete(self) -> bool:
        """Whether all settings have been suggested."""
        return self._suggestions.complete

    def advance(self) -> None:
        """Suggest what can be suggested by results so far."""
        while (made := self._suggestions.next(self.outcome)) is not None:
            try:
                prepared = [(run, self._prepare(run)) for run in made]
            except ConfigError as error:  # it does not fit the data
                if self.space.search.algorithm == "grid":
                    raise
                self._suggestions.problem, prepared = str(error), []
            self._made.append(tuple(planned.run_id for _, planned in prepared))
            for run, planned in prepared:
                self.runs.setdefault(planned.run_id, (run, planned))
        if not self.runs:
            raise none_can_be_trained(self._suggestions)

    def anew(self, *, tries: bool) -> SearchRuns:
        """The same without the outcomes so far, which change when a failed run is tried again."""
        again = SearchRuns(self.space, self._prepare, tries=tries)
        again.measure = self.measure
        return again

    def ended(self, run_id: str) -> None:
        """A run has been tried, whatever came of it."""
        self._tried.add(run_id)

    def outcome(self, index: int) -> Outcome | None:
        """What came of a setting; None while it is not known.

        A seed that was stopped or has diverged decides it, a failed one when there is none of these. One that
        has been tried and has not ended has failed, too: where a disk is full its status cannot be written.
        """
        if index in self._outcomes:
            return self._outcomes[index]
        ids = self._made[index]
        planned = [self.runs[run][1] for run in ids]
        statuses = {run: _status(one) for run, one in zip(ids, planned, strict=True)}
        there, found = {*statuses.values()}, cast("Outcome | None", None)
        if there & {"pruned", "diverged"}:
            found = "stopped"
        elif not ids or any(self._failed(run, status) for run, status in statuses.items()):
            found = "failed"
        elif there == {"finished"}:
            values = [value for one in planned if (value := self._value(one)) is not None]
            if len(values) < len(planned):
                return None
            mean = math.fsum(values) / len(values)
            found = mean if math.isfinite(mean) else "failed"
        if found is not None:
            self._outcomes[index] = found
        return found

    def _failed(self, run_id: str, status: str) -> bool:
        """Whether a run has failed, for a launch only if it has been tried there."""
        return status != "finished" if run_id in self._tried else status == "failed" and not self._tries

    def given_up(self) -> set[str]:
        """The runs of settings whose outcome another seed has decided, as far as they have not ended."""
        decided = (ids for i, ids in enumerate(self._made) if isinstance(self.outcome(i), str))
        return {run for ids in decided for run in ids if _status(self.runs[run][1]) not in OVER}

    def best(self) -> tuple[int, float] | None:
        """The place of the best setting, and its number; None before any is known."""
        known = [(i, found) for i in range(len(self._made)) if isinstance(found := self.outcome(i), float)]
        sign = 1 if self.space.search.mode == "max" else -1
        return max(known, key=lambda one: sign * one[1], default=None)

    def summary(self) -> str:
        """How the search stands, in a sentence."""
        search, best = self.space.search, self.best()
        known = sum(bool(ids) and self.outcome(i) is not None for i, ids in enumerate(self._made))
        many = f"{known} of {search.samples or len(self._made)} settings"
        said = f"search ({search.algorithm}, {search.metric}, {search.mode}): {many} known"
        if unfit := self._made.count(()):
            said += f", {unfit} cannot be trained"
        if best is None:
            return said
        place, value = best
        run = self.runs[self._made[place][0]][0]
        named = ", ".join(f"{axis}={label}" for axis, label in run.setting.items() if label != "-")
        seeds = f", mean over {search.seeds} seeds" if search.seeds > 1 else ""
        return f"{said}; best: {named} with {value:.4g}{seeds}; {chosen_on(run)}"

    def _value(self, planned: Planned) -> float | None:
        """The metric of a finished run; NaN where it has none, None where it is not known yet."""
        metric = self.space.search.metric
        if "/" not in metric:
            value = planned.store.rows()[-1].get(metric)
            return math.nan if value is None else float(value)
        name = metric.partition("/")[0]
        path = planned.store.folder / "analysis" / f"{name}-{_last(planned)}.json"
        if not path.exists():
            if self.measure is None:
                return None
            self.measure(planned, name)
        return _scalar(path, name, metric)


OVER = ("finished", "diverged", "pruned", "failed")
"""Statuses of a run that nobody waits for."""


def none_can_be_trained(suggestions: Suggestions) -> ConfigError:
    """What is said where a search has no run."""
    return ConfigError(f"axes: no setting that is suggested can be trained; the last: {suggestions.problem}")


def chosen_on(run: SweepRun) -> str:
    """Which images a search has chosen on, and whether they are those that are reported."""
    if holdout := run.job.recipe.data.holdout:
        return f"chosen on {holdout:.3g} of the training images, held out; top1 is of val images, seen once"
    return (
        "chosen on the validation images that are reported, so its accuracy is biased upwards: judge it on "
        "other seeds and images"
    )


def _status(planned: Planned) -> str:
    return str(planned.store.status().get("status", "new"))


def _last(planned: Planned) -> str:
    """The label of a run's last moment."""
    return moment_label("relearned", planned.job.recipe.budget.generations - 1)


def _scalar(path: AnyPath, name: str, metric: str) -> float:
    """A number in a result of the analysis of this name; NaN where there is none."""
    try:
        held = json.loads(path.read_bytes())
        scalars = held["scalars"] if "scalars" in held else ANALYSES[name]().scalars(held["result"])
    except FileNotFoundError:
        return math.nan
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}); remove it") from None
    if metric not in scalars:
        raise ConfigError(f"search.metric: {name} finds no {metric}; it has {', '.join(scalars)}")
    value: float | None = scalars[metric]
    return math.nan if value is None else value
