"""Sentences that say what the numbers say, and no more. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from seal_ray.reports.blocks import alike, number
from seal_ray.reports.study import RunFacts, SettingFacts, Study
from seal_ray.runs.folder import ENDED
from seal_ray.sweeps.leaderboard import notes
from seal_ray.sweeps.statistics import SIGNIFICANCE_FROM, Difference, Estimate

MANY = 4
"""From so many comparisons on they are counted and not named one by one."""


def question(study: Study) -> str:
    """What the runs were made to find out, as far as they themselves say it."""
    if len(study.settings) == 1:
        return f"How well does {study.settings[0].name} do?"
    epochs = {setting.line.epochs for setting in study.settings}
    after = f" after {min(epochs):,} epochs" if len(epochs) == 1 else ""
    if not study.baseline:
        return f"Which of {len(study.settings)} settings ends with the highest accuracy{after}?"
    rivals = [one for one in study.settings if not one.line.is_baseline]
    base = " ".join(study.baseline.values())
    who = (
        _listed([one.name for one in rivals], "or")
        if len(rivals) < MANY
        else f"any of {len(rivals)} settings"
    )
    return f"Does {who} end with a higher accuracy than {base}{after}?"


def answer(study: Study) -> str:
    """What the differences allow to say: with few seeds not much, and that is said."""
    finished = [(one, one.line.top1) for one in study.settings if one.line.top1 is not None]
    if not finished:
        statuses = [run.result.status for run in study.runs]
        counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
        return f"No answer yet: no run has finished ({_listed(counts, 'and')})."
    so_far = "So far: " if _goes_on(study) else ""
    first, top1 = finished[0]
    if len(study.settings) == 1:
        reached = f"{so_far}{first.name} reached {top1.mean:.2f} % top-1 after {first.line.epochs:,} epochs"
        if top1.low is None:
            return f"{reached}, with one seed: there is no interval, and nothing to compare it with."
        return f"{reached} ({_within(top1)}). There is nothing to compare it with."
    compared = [(one, one.line.difference) for one, _ in finished if one.line.difference is not None]
    if not compared and len(finished) == 1:
        return f"Only {first.name} has finished: {top1.mean:.2f} % ({_within(top1)})."
    if not compared:
        return so_far + _highest(study, finished)
    if len(compared) >= MANY:
        said = [_counted(compared, sum(not one.line.is_baseline for one in study.settings))]
    else:
        unclear = [(one, difference) for one, difference in compared if told(difference) == 0]
        said = [_unclear(unclear)] if unclear else []
        said += [_clear(one.name, d) for one, d in compared if told(d) != 0]
    left = [one for one in study.settings if one.line.difference is None and not one.line.is_baseline]
    return so_far + " ".join([*said, *_not(study, left, "compared"), *_unequal(study, compared)])


def _goes_on(study: Study) -> bool:
    """Whether there are runs that have not finished and still may."""
    return any(run.result.status not in (*ENDED, "pruned") for run in study.runs)


def _within(top1: Estimate) -> str:
    if top1.low is None or top1.high is None:
        return f"n = {top1.n}"
    return alike(top1) or f"95 % interval {top1.low:.2f} to {top1.high:.2f}, n = {top1.n}"


def _highest(study: Study, finished: Sequence[tuple[SettingFacts, Estimate]]) -> str:
    """The best of settings of which none could be compared."""
    settings = [one for one, _ in finished]
    best, top1 = max(finished, key=lambda one: one[1].mean)
    if not study.baseline:
        why = "there is no baseline"
    elif all(one.line.is_baseline for one in settings):
        why = "only baselines have finished"
    else:
        why = "the baseline has finished none of their seeds"
    highest = (
        f"{best.name} has the highest mean of {len(finished)} settings, {top1.mean:.2f} % ({_within(top1)}); "
        f"{why}, so no difference was tested, and being the best of several it is biased upwards."
    )
    left = [one for one in study.settings if one not in settings]
    differ = [BUDGETS_DIFFER] if len({one.line.epochs for one in settings}) > 1 else []
    return " ".join([highest, *_not(study, left, "finished"), *differ])


def _not(study: Study, left: Sequence[SettingFacts], what: str) -> list[str]:
    """Which settings the answer is not of."""
    names = [one.name for one in left]
    if len(names) > MANY:
        names = [*names[: MANY - 1], f"{len(names) - MANY + 1} more"]
    return [f"{_listed(names, 'and')}: not {what}{' yet' if _goes_on(study) else ''}."] if names else []


BUDGETS_DIFFER = "Budgets differ: the difference may be one of compute."


def _unequal(study: Study, compared: Sequence[tuple[SettingFacts, Difference]]) -> list[str]:
    """Said where a setting was compared with a baseline that trains for longer or shorter."""
    epochs = {frozenset(line.setting.items()): line.epochs for line in study.lines}
    rivals = [
        (one.line.epochs, epochs[frozenset({**one.line.setting, **study.baseline}.items())])
        for one, _ in compared
    ]
    return [BUDGETS_DIFFER] if any(own != of_rival for own, of_rival in rivals) else []


def _unclear(compared: Sequence[tuple[SettingFacts, Difference]]) -> str:
    """What is said of differences that may be none."""
    counts = sorted({difference.n for _, difference in compared})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    each = [f"{one.name} {_numbers(difference)}" for one, difference in compared]
    return f"No difference to the baseline can be told with n = {n}: {'; '.join(each)}."


def _numbers(difference: Difference) -> str:
    """A difference with its interval and p, as far as there are such."""
    mean, low, high = (number(v, "+z.2f") for v in (difference.mean, difference.low, difference.high))
    if difference.low is None or difference.high is None or difference.p is None:
        return f"{mean} points"
    within = alike(difference) or f"95 % interval {low} to {high}"
    return f"{mean} points ({within}, p = {difference.p:.2g})"


def _clear(name: str, difference: Difference) -> str:
    """What is said of a difference that its interval keeps away from 0."""
    better = "higher" if difference.mean > 0 else "lower"
    if difference.n >= SIGNIFICANCE_FROM:
        return f"{name} is {better} with n = {difference.n}: {_numbers(difference)}."
    return (
        f"{name} looks {better}, {_numbers(difference)}; but with n = {difference.n} p cannot fall below "
        f"{difference.smallest_p:.2g}: an indication, no proof."
    )


def told(difference: Difference) -> int:
    """Which way a difference points: 1 or -1, or 0 where the interval or p does not allow to tell.

    Below six seeds p cannot say it, so the interval alone does, and is called an indication; one without
    width is none.
    """
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return 0
    if difference.significant is False or (difference.significant is None and alike(difference)):
        return 0
    return 1 if difference.mean > 0 else -1


def _counted(compared: Sequence[tuple[SettingFacts, Difference]], asked: int) -> str:
    """The verdicts on many comparisons, of so many that were asked for."""
    ways = [told(difference) for _, difference in compared]
    up, down = [one.name for (one, _), way in zip(compared, ways, strict=True) if way > 0], ways.count(-1)
    unclear = ways.count(0)
    few = min(difference.n for _, difference in compared) < SIGNIFICANCE_FROM
    which = f" ({_listed(up[:3], 'and')}{', ...' if len(up) > 3 else ''})" if up else ""
    verb = "look" if few else "are"
    of = f"{len(compared)} (of {asked})" if len(compared) < asked else str(asked)
    return (
        f"Of {of} settings compared with the baseline {len(up)} {verb} higher{which} and {down} "
        f"lower; of {unclear} no difference can be told. No p is corrected for the number of comparisons"
        + (f", and with n < {SIGNIFICANCE_FROM} none could fall below 0.05." if few else ".")
    )


def unbroken(said: str) -> str:
    """The same with spaces that do not break lines in `95 %` and `n = 3`."""
    return re.sub(
        r"\b([np]) = ", "\\1\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}", said.replace(" %", "\N{NO-BREAK SPACE}%")
    )


def _listed(words: Sequence[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def warnings(study: Study) -> list[str]:
    """What a reader must know before believing the page: one line each, the gravest first."""
    said = [f"{name} cannot be read and is left out: {why}" for name, why in study.unreadable.items()]
    said += [line for run in study.runs for line in _of_run(run)]
    said += [one for one in study.notes if not any(one.startswith(run.id) for run in study.runs)]
    known = (*study.notes, *(line for one in study.settings for line in one.line.problems))
    for column in study.columns:  # evaluations on other data sets, beyond what is said of runs
        said += [f"{column.name}: {note}" for note in notes(column.lines) if note not in known]
    prints = [one.fingerprint for run in study.runs for one in run.moments]
    for key in ("device", "torch", "threads", "deterministic"):
        values = dict.fromkeys(str(one.get(key)) for one in prints)
        if len(values) > 1:
            said.append(f"runs differ in {key}: {', '.join(values)}; last bits may differ for it")
    own = dict.fromkeys(f"{run.id} warned: {text}" for run in study.runs for text in run.warnings)
    return said + list(own)


def _of_run(run: RunFacts) -> Iterator[str]:
    result = run.result
    if result.status not in ("finished", "new"):
        at = "" if result.status in ENDED else f" after {len(run.rows):,} of {result.epochs:,} epochs"
        yield f"{run.id} is {result.status}{at}{': ' + result.reason if result.reason else ''}"
    if result.status == "new":
        yield f"{run.id} has not begun"
    resumed = resumptions(run)
    if resumed:
        times = "once" if len(resumed) == 1 else f"{len(resumed)} times"
        where = _listed([str(epoch) for epoch in resumed], "and")
        yield f"{run.id} was resumed {times}, after epoch {where}; its bits do not depend on that"
    workers = list(dict.fromkeys(row["workers"] for row in run.own_rows))
    if len(workers) > 1:
        sizes = " then ".join(map(str, workers))
        yield f"{run.id}: the world size changed, {sizes} workers; its bits do not depend on that"


def resumptions(run: RunFacts) -> list[int]:
    """After how many epochs a run went on that it had itself begun to train."""
    own = {row["global_epoch"] + 1 for row in run.own_rows}
    return sorted({start for start in run.starts if start in own and start < run.result.epochs})
