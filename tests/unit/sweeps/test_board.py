"""The board between a sweep's driver, its workers and Tune's trials."""

from __future__ import annotations

from typing import Any

from seal_ray.sweeps.board import WAIT, Board

FINISHED = {"status": "finished", "reason": ""}


def assignment(token: str, retries: int = 1, **fields: Any) -> dict[str, Any]:
    return {"token": token, "retries": retries, "news": [], **fields}


def test_each_task_goes_to_one_group_in_turn_and_a_group_has_one_at_a_time() -> None:
    board = Board(2)
    assert board.take(0, 1) == WAIT
    for token in "abc":
        board.put(assignment(token))
    assert [board.take(group, 1)["token"] for group in (0, 1)] == ["a", "b"]  # type: ignore[index]
    assert board.follow("a", 0) == ([], None)
    board.end(0, FINISHED)
    assert board.follow("a", 0) == ([], FINISHED)
    assert board.take(0, 1)["token"] == "c"  # type: ignore[index]


def test_workers_that_were_started_anew_get_their_task_again_and_not_for_ever() -> None:
    board = Board(2)
    board.put(assignment("a", retries=2))
    board.put(assignment("b"))
    assert [board.take(0, 1)["token"] for _ in range(3)] == ["a"] * 3  # type: ignore[index]
    assert board.take(0, 1)["token"] == "b"  # type: ignore[index]
    _, outcome = board.follow("a", 0)
    assert outcome == {"status": "failed", "reason": "its workers died 3 times; see Ray's logs"}


def test_a_run_whose_workers_say_why_they_give_up_fails_for_that_reason() -> None:
    board = Board(1)
    board.put(assignment("a", retries=1))
    board.put(assignment("b", retries=0))
    for _ in range(2):
        assert board.take(0, 1)["token"] == "a"  # type: ignore[index]
        board.explain(0, "KeyError: 'fc'")
    assert board.take(0, 1)["token"] == "b"  # type: ignore[index]
    assert board.take(0, 1) == WAIT
    board.explain(0, "said by nobody who has a run")
    assert [(board.follow(token, 0)[1] or {})["reason"] for token in "ab"] == [
        "its workers died 2 times; KeyError: 'fc'",
        "its workers died 1 times; see Ray's logs",
    ]


def test_more_workers_than_before_are_no_death() -> None:
    board = Board(1)
    board.put(assignment("a", retries=1))
    assert [board.take(0, workers)["token"] for workers in (1, 2, 1, 2)] == ["a"] * 4  # type: ignore[index]
    assert board.take(0, 2) == WAIT
    _, outcome = board.follow("a", 0)
    assert outcome == {"status": "failed", "reason": "its workers died 2 times; see Ray's logs"}


def test_news_are_told_once_however_often_a_generation_is_trained() -> None:
    board = Board(2)
    board.put(assignment("a", news=[{"epochs": 2, "top1": 40.0}]))
    for epochs in (2, 4, 4, 6):
        board.tell("a", {"epochs": epochs, "top1": 50.0})
    news, _ = board.follow("a", 0)
    assert [(one["epochs"], one["top1"]) for one in news] == [(2, 40.0), (4, 50.0), (6, 50.0)]
    assert board.follow("a", 2)[0] == news[2:]


def test_a_closed_board_sends_groups_home_once_they_have_ended_what_they_hold() -> None:
    board = Board(2)
    for token in "ab":
        board.put(assignment(token))
    board.take(0, 1)
    board.close("enough")
    board.put(assignment("c"))
    for token in "bc":
        assert board.follow(token, 0)[1] == {"status": "failed", "reason": "enough"}
    board.end(0, FINISHED)
    assert board.take(0, 1) is None
    assert board.take(1, 1) is None


def test_a_group_that_breaks_down_loses_its_run_only() -> None:
    board = Board(2)
    board.put(assignment("a"))
    board.put(assignment("b"))
    board.take(0, 1)
    board.lose(0, "no GPU left")
    assert board.follow("a", 0)[1] == {"status": "failed", "reason": "no GPU left"}
    assert board.follow("b", 0)[1] is None
    board.lose(1, "none at all")  # nobody is left to train anything
    board.put(assignment("c"))
    for token in "bc":
        assert board.follow(token, 0)[1] == {"status": "failed", "reason": "none at all"}
