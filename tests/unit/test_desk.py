"""The desk between a sweep's driver, its workers and Tune's trials."""

from __future__ import annotations

from typing import Any

from seal_ray.sweeps.desk import WAIT, Desk

FINISHED = {"status": "finished", "reason": ""}


def task(token: str, retries: int = 1, **fields: Any) -> dict[str, Any]:
    return {"token": token, "retries": retries, "news": [], **fields}


def test_each_task_goes_to_one_slot_in_turn_and_a_slot_has_one_at_a_time() -> None:
    desk = Desk(2)
    assert desk.take(0, 1) == WAIT
    for token in "abc":
        desk.put(task(token))
    assert [desk.take(slot, 1)["token"] for slot in (0, 1)] == ["a", "b"]  # type: ignore[index]
    assert desk.follow("a", 0) == ([], None)
    desk.end(0, FINISHED)
    assert desk.follow("a", 0) == ([], FINISHED)
    assert desk.take(0, 1)["token"] == "c"  # type: ignore[index]


def test_workers_that_were_started_anew_get_their_task_again_and_not_for_ever() -> None:
    desk = Desk(2)
    desk.put(task("a", retries=2))
    desk.put(task("b"))
    assert [desk.take(0, 1)["token"] for _ in range(3)] == ["a"] * 3  # type: ignore[index]
    assert desk.take(0, 1)["token"] == "b"  # type: ignore[index]
    _, outcome = desk.follow("a", 0)
    assert outcome == {"status": "failed", "reason": "its workers died 3 times; see Ray's logs"}


def test_more_workers_than_before_are_no_death() -> None:
    desk = Desk(1)
    desk.put(task("a", retries=1))
    assert [desk.take(0, workers)["token"] for workers in (1, 2, 1, 2)] == ["a"] * 4  # type: ignore[index]
    assert desk.take(0, 2) == WAIT
    _, outcome = desk.follow("a", 0)
    assert outcome == {"status": "failed", "reason": "its workers died 2 times; see Ray's logs"}


def test_news_are_told_once_however_often_a_generation_is_trained() -> None:
    desk = Desk(2)
    desk.put(task("a", news=[{"epochs": 2, "top1": 40.0}]))
    for epochs in (2, 4, 4, 6):
        desk.tell("a", {"epochs": epochs, "top1": 50.0})
    news, _ = desk.follow("a", 0)
    assert [(one["epochs"], one["top1"]) for one in news] == [(2, 40.0), (4, 50.0), (6, 50.0)]
    assert desk.follow("a", 2)[0] == news[2:]


def test_a_closed_desk_sends_slots_home_once_they_have_ended_what_they_hold() -> None:
    desk = Desk(2)
    for token in "ab":
        desk.put(task(token))
    desk.take(0, 1)
    desk.close("enough")
    desk.put(task("c"))
    for token in "bc":
        assert desk.follow(token, 0)[1] == {"status": "failed", "reason": "enough"}
    desk.end(0, FINISHED)
    assert desk.take(0, 1) is None
    assert desk.take(1, 1) is None


def test_a_slot_that_breaks_down_loses_its_run_only() -> None:
    desk = Desk(2)
    desk.put(task("a"))
    desk.put(task("b"))
    desk.take(0, 1)
    desk.lose(0, "no GPU left")
    assert desk.follow("a", 0)[1] == {"status": "failed", "reason": "no GPU left"}
    assert desk.follow("b", 0)[1] is None
    desk.lose(1, "none at all")  # nobody is left to train anything
    desk.put(task("c"))
    for token in "bc":
        assert desk.follow(token, 0)[1] == {"status": "failed", "reason": "none at all"}
