"""Sentences that say what the numbers say, and no more. Pure."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from seal_ray.reports.blocks import alike, number, seeds
from seal_ray.reports.study import RunFacts, SettingFacts, Study, memorised
from seal_ray.runs.folder import ENDED
from seal_ray.sweeps.leaderboard import compared, notes
from seal_ray.sweeps.statistics import SIGNIFICANCE_FROM, Difference, Estimate

MANY = 4
"""From so many comparisons on they are counted and not named one by one."""


@dataclass(frozen=True)
class Statement:
    """What comes out, and the numbers it stands on."""

    head: str
    rest: str = ""


def question(study: Study) -> str:
    """What the runs were made to find out, as far as they themselves say it."""
    asked = [one for one in study.settings if one.stopped is None]
    if len(asked) == 1:
        return f"How well does {asked[0].name} do{_trained_on(study)}?"
    epochs = {setting.line.epochs for setting in asked}
    after = (f" after {min(epochs):,} epochs" if len(epochs) == 1 else "") + _trained_on(study)
    if not study.baseline:
        return f"Which of {len(asked)} settings ends with the highest accuracy{after}?"
    rivals = [one for one in asked if not one.line.is_baseline]
    bases = [one.name for one in asked if one.line.is_baseline]
    base = bases[0] if len(bases) == 1 else " ".join(study.baseline.values())
    base = "plain training (normal)" if base == "normal" else base
    who = (
        _listed([one.name for one in rivals], "or")
        if len(rivals) < MANY
        else f"any of {len(rivals)} settings"
    )
    return f"Does {who} end with a higher accuracy than {base}{after}?"


def _trained_on(study: Study) -> str:
    """The data that all settings have in common."""
    data = [setting.job.recipe.data for setting in study.settings if setting.job is not None]
    paths, noises = {one.path for one in data}, {one.label_noise for one in data}
    said = [f" on {min(paths).rstrip('/').rpartition('/')[2]}"] if len(paths) == 1 else []
    if len(noises) == 1 and min(noises) > 0:
        said.append(f" with {100 * min(noises):g} % wrong training labels")
    return "".join(said)


def answer(study: Study) -> tuple[Statement, ...]:
    """What the differences allow to say: with few seeds not much, and that is said.

    Beside the baseline itself, what it reaches when it stops sooner: see `_stopping`.
    """
    finished = [one for one in study.settings if one.line.top1 is not None]
    if not finished:
        statuses = [run.result.status for run in study.runs]
        counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
        return (Statement(f"No answer yet: no run has finished ({_listed(counts, 'and')})."),)
    differing = [(one, one.line.difference) for one in finished if one.stopped is None]
    found = [(one, difference) for one, difference in differing if difference is not None]
    found.sort(key=lambda one: (told(one[1]) == 0, -one[1].mean))  # what can be told first
    if found:
        stopping = list(_stopping(study, found))
        leads = [lead for lead, _ in stopping if lead is not None]
        claims = [*leads, *_compared(study, found), *(claim for _, claim in stopping), *_memorising(study)]
    else:
        claims = [*_alone(study, finished), *_memorising(study)]
    if _goes_on(study):
        claims[0] = replace(claims[0], head=f"So far: {claims[0].head}")
    return tuple(claims)


def _goes_on(study: Study) -> bool:
    """Whether there are runs that have not finished and still may."""
    return any(run.result.status not in (*ENDED, "pruned") for run in study.runs)


def _within(top1: Estimate) -> str:
    if top1.low is None or top1.high is None:
        return seeds(top1.n)
    return alike(top1) or f"95 % interval {top1.low:.2f} to {top1.high:.2f}, {seeds(top1.n)}"


def _alone(study: Study, finished: Sequence[SettingFacts]) -> Iterator[Statement]:
    """The best of settings of which none could be compared."""
    tops = [(one, one.line.top1) for one in finished if one.line.top1 is not None]
    best, top1 = max(tops, key=lambda one: one[1].mean)
    if len(finished) == 1:
        only = "" if len(study.settings) == 1 else "Only this setting has finished."
        nothing = only or "There is nothing to compare it with."
        head = f"{best.name} reaches {top1.mean:.2f} % after {best.line.epochs:,} epochs"
        yield Statement(head, f"({_within(top1)}). {nothing}")
        return
    if not study.baseline:
        why = "there is no baseline"
    elif all(one.line.is_baseline for one in finished):
        why = "only baselines have finished"
    else:
        why = "the baseline has finished none of their seeds"
    yield Statement(
        f"{best.name} has the highest mean of {len(finished)} settings: {top1.mean:.2f} %",
        f"({_within(top1)}); {why}, so no difference was tested, and being the best of several it is biased "
        "upwards.",
    )
    yield from _not(study, [one for one in study.settings if one not in finished], "finished")
    if len({one.line.epochs for one in finished}) > 1:
        yield BUDGETS_DIFFER


BUDGETS_DIFFER = Statement("Budgets differ,", "so that a difference may be one of compute.")

Found = Sequence[tuple[SettingFacts, Difference]]


def _compared(study: Study, found: Found) -> Iterator[Statement]:
    """The verdicts."""
    left = [one for one in study.settings if one.line.difference is None and not one.line.is_baseline]
    if len(found) >= MANY:
        yield _counted(found, sum(not one.line.is_baseline and one.stopped is None for one in study.settings))
    else:
        for one, difference in found:
            base = study.rival(one)
            assert base is not None, one.name
            yield _verdict(one.name, one.top1, base, base.name, difference)
    yield from _not(study, left, "compared")
    rivals = [(one, study.rival(one)) for one, _ in found]
    if any(base is not None and one.line.epochs != base.line.epochs for one, base in rivals):
        yield BUDGETS_DIFFER


def _not(study: Study, left: Sequence[SettingFacts], what: str) -> list[Statement]:
    """Which settings the answer is not of."""
    names = [one.name for one in left]
    if len(names) > MANY:
        names = [*names[: MANY - 1], f"{len(names) - MANY + 1} more"]
    return (
        [Statement(f"{_listed(names, 'and')}: not {what}{' yet' if _goes_on(study) else ''}.")]
        if names
        else []
    )


def _verdict(
    name: str, top1: Mapping[int, float], base: SettingFacts, than: str, found: Difference
) -> Statement:
    """How accuracies by seed compare with those of a baseline, which is called `than`."""
    means = ""
    if top1.keys() == base.top1.keys():
        own, theirs = (number(sum(held.values()) / len(held), _form(found)) for held in (top1, base.top1))
        means = f": {own} against {theirs} %"
    if not (way := told(found)):
        head = f"No difference between {name} and {than} can be told:"
        return Statement(head, f"{_points(found)} ({_sure(found)}, {seeds(found.n)}{_least(found)}){means}.")
    proof = found.n >= SIGNIFICANCE_FROM
    head = f"{name} {'ends' if proof else 'seems to end'} {number(abs(found.mean), _form(found))} points "
    head += f"{'higher' if way > 0 else 'lower'} than {than}{'' if proof else ', no proof'}"
    return Statement(head, f"({_sure(found)}, {seeds(found.n)}{_least(found)}){means}.")


def _form(found: Difference) -> str:
    """Digits of accuracies beside a difference: no more than its interval allows to tell apart."""
    wide = found.low is not None and found.high is not None and found.high - found.low >= 1
    return "z.1f" if wide else "z.2f"


def _points(found: Difference) -> str:
    return f"{number(found.mean, '+' + _form(found))} points"


def _sure(found: Difference) -> str:
    """The interval of a difference and p."""
    if found.p is None:
        return "no interval"
    if found.low is None or found.high is None:
        return f"no interval, p = {found.p:.3g}"
    low, high = (number(v, "+" + _form(found)) for v in (found.low, found.high))
    return f"{alike(found) or f'{low} … {high}'}, p = {found.p:.3g}"


def _least(found: Difference) -> str:
    """What keeps p from falling below 0.05, if anything does."""
    few = found.smallest_p is not None and found.n < SIGNIFICANCE_FROM
    return f", with which p cannot fall below {found.smallest_p:.3g}" if few else ""


def _stopping(study: Study, found: Found) -> Iterator[tuple[Statement | None, Statement]]:
    """What baselines reach that stop sooner, and how their rivals compare with that; before each the sentence
    that the answer begins with, where rivals beat the baseline alone.

    Of settings for which that was trained, and of the best end of a generation where it is above the last.
    """
    bases = {base.index: base for one, _ in found if (base := study.rival(one)) is not None}
    for base in bases.values() if len(bases) < MANY else ():
        rivals = [(one, difference) for one, difference in found if study.rival(one) is base]
        for said, than, top1, chosen in _stops(study, base):
            gain = compared(top1, base.top1)
            if gain is None or (chosen and told(gain) <= 0):
                continue
            claim = _verdict(f"{base.name} {said}", top1, base, than, gain)
            against = [(one, d) for one, _ in rivals if (d := compared(one.top1, top1)) is not None]
            higher = [(one.name, d.n) for one, d in rivals if told(d) > 0]
            lead = None
            if told(gain) > 0 and higher and not any(told(d) > 0 for _, d in against):
                names, plural = [name for name, _ in higher], len(higher) > 1
                beat = "seem" if min(n for _, n in higher) < SIGNIFICANCE_FROM else "beat"
                beat += "s" * (not plural) + " to beat" * (beat == "seem")
                but = f"but {'are' if plural else 'is'} not shown to beat it {said}."
                lead = Statement(f"{_listed(names, 'and')} {beat} {base.name}, {but}")
            rest = " ".join(filter(None, (claim.rest, chosen, _against(against))))
            yield lead, Statement(claim.head, rest)


def _stops(study: Study, base: SettingFacts) -> Iterator[tuple[str, str, dict[int, float], str]]:
    """Ways of stopping a baseline sooner, and not, in words; accuracies by seed; a caveat."""
    done = [run.result for run in base.runs if run.result.top1 is not None]
    ends = [
        dict(zip((one.seed for one in done), tops, strict=True))
        for tops in zip(*(one.generation_top1 for one in done), strict=False)
    ]
    trained = [one for one in study.settings if one.stopped == base.index and one.top1]
    for one in trained:
        same = any(one.top1.items() <= end.items() for end in ends)
        how = "stopped after" if same else "trained for"
        said, than = f"{how} {one.line.epochs:,} epochs", f"after {base.line.epochs:,}"
        yield said, than, one.top1, ""
    means = [sum(end.values()) for end in ends]
    best = means.index(max(means)) if means else 0
    if best < len(ends) - 1 and not any(one.top1.items() <= ends[best].items() for one in trained):
        said = f"stopped after {best + 1} generation{'s' * (best > 0)}"
        chosen = f"Of its {len(ends)} that is the best, chosen on these images, so biased upwards."
        yield said, f"after {len(ends)}", ends[best], chosen


def _against(found: Found) -> str:
    """How settings compare with a baseline that stopped sooner."""
    ways = [told(difference) for _, difference in found]
    if len(found) >= MANY:
        few = min(difference.n for _, difference in found) < SIGNIFICANCE_FROM
        verb = "seem" if few else "are"
        return f"Of {len(found)} settings {ways.count(1)} {verb} higher than that, {ways.count(-1)} lower."
    said = []
    for (one, d), way in zip(found, ways, strict=True):
        verdict = "no difference can be told" if not way else "higher" if way > 0 else "lower"
        if way and d.n < SIGNIFICANCE_FROM:
            verdict = f"seems {verdict}, no proof"
        said.append(f"{one.name} {_points(d)} ({_sure(d)}): {verdict}")
    return f"Against that, {'; '.join(said)}." if said else ""


def _memorising(study: Study) -> Iterator[Statement]:
    """How much of wrong labels was memorised by the end, where that was noted and settings are few."""
    lines = [(one, line) for one, line in zip(study.settings, memorised(study), strict=False) if line.top1]
    if not lines or len(lines) > MANY + 1:
        return
    each = [f"{line.top1.mean:.0f} % ({one.name})" for one, line in lines if line.top1]
    fewer = [(one, line.difference) for one, line in lines if line.difference and told(line.difference) < 0]
    rest = ""
    if fewer:
        plural = len(fewer) > 1
        few = min(difference.n for _, difference in fewer) < SIGNIFICANCE_FROM
        verb = f"seem{'' if plural else 's'} to memorise" if few else f"memorise{'' if plural else 's'}"
        p = max(difference.p or 0.0 for _, difference in fewer)
        named = _listed([one.name for one, _ in fewer], "and")
        rest = f"{named} {verb} fewer than the baseline (p {'≤' if plural else '='} {p:.3g})."
    rest = f"Of the training images with wrong labels, those predicted as labelled. {rest}".rstrip()
    yield Statement(f"Wrong labels memorised by the end: {_listed(each, 'and')}.", rest)


def footnote(study: Study) -> str:
    """What stands in the answer's brackets, and how small its p can be."""
    differences = [line.difference for line in study.lines if line.difference is not None]
    floors = [one.smallest_p for one in differences if one.smallest_p is not None]
    least = (
        f", which cannot be below {min(floors):.3g}, uncorrected for several comparisons" if floors else ""
    )
    return f"In brackets: 95 % intervals of differences, paired by seed, and p{least}."


def methods(study: Study) -> dict[str, str]:
    """What the methods are, by name, as far as their modules say it; none where they are many."""
    found = {}
    for setting in study.settings:
        if setting.job is not None:
            method = setting.job.recipe.method
            said = (sys.modules[type(method).__module__].__doc__ or "").strip().partition("\n")[0]
            found[method.name] = said
    return {name: said for name, said in found.items() if said} if len(found) <= MANY else {}


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


def _counted(compared: Found, asked: int) -> Statement:
    """The verdicts on many comparisons, of so many that were asked for."""
    ways = [told(difference) for _, difference in compared]
    up, down = [one.name for (one, _), way in zip(compared, ways, strict=True) if way > 0], ways.count(-1)
    unclear = ways.count(0)
    few = min(difference.n for _, difference in compared) < SIGNIFICANCE_FROM
    which = f" ({_listed(up[:3], 'and')}{', ...' if len(up) > 3 else ''})" if up else ""
    verb = "seem" if few else "are"
    of = f"{len(compared)} (of {asked})" if len(compared) < asked else str(asked)
    return Statement(
        f"Of {of} settings compared with the baseline {len(up)} {verb} higher{which} and {down} lower;",
        f"of {unclear} no difference can be told. No p is corrected for the number of comparisons"
        + (f", and with n < {SIGNIFICANCE_FROM} none could fall below 0.05." if few else "."),
    )


def unbroken(said: str) -> str:
    """The same with spaces that do not break lines in `95 %` and `n = 3`."""
    return re.sub(
        r"\b([np]) ([=≤]) ",
        "\\1\N{NO-BREAK SPACE}\\2\N{NO-BREAK SPACE}",
        said.replace(" %", "\N{NO-BREAK SPACE}%"),
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
