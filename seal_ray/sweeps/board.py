"""Where a sweep's driver leaves runs to be trained, workers fetch them, and Tune's trials learn how they go.

An actor of its own. This module needs nothing but Ray, so that processes which only pass on news start fast.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

ASSIGNMENT_TIMEOUT = 10.0
"""Seconds that workers wait for an assignment before they say that they do."""
BOARD_INTERVAL = 0.2
"""Seconds between two looks at the board."""
WAIT = "wait"
"""The answer to workers for which there is nothing to do yet."""

Assignment = dict[str, Any]
"""A run to train: {token, retries, metric, news, ...}. The token of its lease names it."""


class Board:
    """What is to be trained, who trains it, what has come of it. A group has one assignment at a time."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._todo: deque[Assignment] = deque()
        self._held: dict[int, Assignment] = {}
        self._starts: dict[str, int] = {}
        self._workers: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._news: dict[str, list[dict[str, Any]]] = {}
        self._outcomes: dict[str, dict[str, str]] = {}
        self._closed = ""

    def put(self, assignment: Assignment) -> None:
        """Leave a run to be trained. Its news so far: of generations that are done already."""
        self._news[assignment["token"]] = list(assignment["news"])
        if self._closed:
            self._outcomes[assignment["token"]] = {"status": "failed", "reason": self._closed}
        else:
            self._todo.append(assignment)

    def take(self, group: int, workers: int) -> Assignment | str | None:
        """The one that the group has not ended, when its workers were started anew; or the next.

        WAIT: none yet; None: no more will come. A run whose workers died more than `retries` times failed.
        That there are more of them than before, elastic ones, is no death.
        """
        assignment = self._held.get(group)
        if assignment is None and self._todo:
            assignment = self._held[group] = self._todo.popleft()
        if assignment is None:
            return None if self._closed else WAIT
        token = assignment["token"]
        grown = workers > self._workers.get(token, workers)
        self._workers[token] = workers
        why = self._reasons.pop(token, "see Ray's logs")
        starts = self._starts[token] = self._starts.get(token, 0) + (not grown)
        if starts > assignment["retries"] + 1:
            self.end(group, {"status": "failed", "reason": f"its workers died {starts - 1} times; {why}"})
            return self.take(group, workers)
        return assignment

    def tell(self, token: str, news: dict[str, Any]) -> None:
        """News of a run: the end of a generation, {epochs, value}. Told once, however often it is trained."""
        if all(known["epochs"] != news["epochs"] for known in self._news[token]):
            self._news[token].append(news)

    def explain(self, group: int, reason: str) -> None:
        """Why a worker of the group gives up what it has: an exception, after which it is started anew."""
        if group in self._held:
            self._reasons[self._held[group]["token"]] = reason

    def end(self, group: int, outcome: dict[str, str]) -> None:
        """The group's run has ended, {status, reason}; the group is free."""
        self._outcomes[self._held.pop(group)["token"]] = outcome

    def follow(self, token: str, seen: int) -> tuple[list[dict[str, Any]], dict[str, str] | None]:
        """News of a run after the first `seen`, and its outcome once it has ended."""
        return self._news[token][seen:], self._outcomes.get(token)

    def close(self, reason: str = "the sweep has ended") -> None:
        """No more runs come; those that nobody has taken fail for this reason."""
        self._closed = reason
        for assignment in self._todo:
            self._outcomes[assignment["token"]] = {"status": "failed", "reason": reason}
        self._todo.clear()

    def lose(self, group: int, reason: str) -> None:
        """A group has broken down: its run failed. When it was the last one, so do all others."""
        if group in self._held:
            self.end(group, {"status": "failed", "reason": reason})
        self._groups -= 1
        if not self._groups:
            self.close(reason)


def follow_for_tune(board: Any, config: dict[str, Any]) -> None:
    """What a Tune trial runs: report the end of each generation of its run until that has ended."""
    import ray
    from ray import tune

    seen, outcome = 0, None
    while outcome is None:
        news, outcome = ray.get(board.follow.remote(config["token"], seen))
        for one in news:
            tune.report(one)
        seen += len(news)
        if outcome is None:
            time.sleep(BOARD_INTERVAL)


def next_assignment(board: Any, group: int, workers: int) -> Assignment | str | None:
    """The next one for a group of so many workers; WAIT, after ASSIGNMENT_TIMEOUT, when there is none yet."""
    import ray

    deadline = time.monotonic() + ASSIGNMENT_TIMEOUT
    while (answer := ray.get(board.take.remote(group, workers))) == WAIT and time.monotonic() < deadline:
        time.sleep(BOARD_INTERVAL)
    assignment: Assignment | str | None = answer
    return assignment
