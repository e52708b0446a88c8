"""Which calls of fit, evaluate and predict the workers make together."""

import pytest

from spark_tensorflow_distributor.runtime.driver.calls import CONFLICT_SECONDS, PATIENCE_SECONDS, MethodCalls
from spark_tensorflow_distributor.runtime.specs import AWAY_SECONDS


class Workers:
    """Workers whose clock stands still until somebody waits."""

    def __init__(self, world_size=2, are_checked=True):
        self.calls = MethodCalls(world_size, are_checked=are_checked)
        self.world_size, self.now, self.done, self.numbers = world_size, 0.0, set(), [0] * world_size

    def enter(self, rank, method, key=None, *, may_be_alone=None, is_nested=False):
        self.numbers[rank] += 1
        may_be_alone = method != "fit" if may_be_alone is None else may_be_alone
        message = {"type": "call", "number": self.numbers[rank], "method": method, "key": key or method}
        message |= {"line": f"line of {key or method}", "may_be_alone": may_be_alone, "is_nested": is_nested}
        self.calls.receive(rank, message, self.now)
        return self.numbers[rank]

    def leave(self, rank, number):
        self.calls.receive(rank, {"type": "call_left", "number": number}, self.now)

    def barrier(self, rank, is_entered=True):
        text = "BarrierTaskContext.barrier"
        self.calls.receive(rank, {"type": "barrier", "is_entered": is_entered, "text": text}, self.now)

    def answers(self, seconds=0.0):
        self.now += seconds
        return {rank: answer for rank, _, answer in self.calls.answers(self.done, self.now)}

    def conflict(self, seconds=0.0):
        self.calls.conflict(self.done, self.now)
        self.now += seconds
        return self.calls.conflict(self.done, self.now)

    def fit_together(self):
        numbers = [self.enter(rank, "fit") for rank in range(self.world_size)]
        while self.answers():
            pass
        return numbers


def test_a_call_that_all_make_is_made_together():
    workers = Workers(3)
    for rank in (2, 0):
        workers.enter(rank, "evaluate")
    assert workers.answers(PATIENCE_SECONDS - 1) == {}
    workers.enter(1, "evaluate")
    assert workers.answers() == {0: "together", 1: "together", 2: "together"}
    assert workers.answers() == {}


@pytest.mark.parametrize("are_checked", [True, False])
def test_the_chief_predicts_alone_while_another_worker_is_ahead_in_fit(are_checked):
    workers = Workers(are_checked=are_checked)
    predict = workers.enter(0, "predict")
    fit = workers.enter(1, "fit")
    first = workers.answers()
    assert (first | workers.answers()) == ({0: "alone", 1: "together"} if are_checked else {0: "alone"})
    assert workers.answers(100) == {}
    assert workers.conflict(100) is None
    workers.leave(0, predict)
    again = workers.enter(0, "fit")
    assert workers.answers() == ({0: "together"} if are_checked else {0: "together", 1: "together"})
    assert workers.conflict(100) is None
    workers.leave(0, again)
    workers.leave(1, fit)


def test_the_chief_predicts_alone_after_the_others_have_returned():
    workers = Workers(3)
    workers.done = {1}
    workers.enter(0, "predict")
    assert workers.answers() == {0: "alone"}
    assert workers.conflict(100) is None


def test_the_others_wait_for_the_chief_that_predicts_first():
    workers = Workers(3)
    for rank in (1, 2):
        workers.enter(rank, "evaluate", "all")
    alone = workers.enter(0, "evaluate", "sample")
    assert workers.answers() == {0: "alone"}
    assert workers.answers(1000) == {}
    workers.leave(0, alone)
    workers.enter(0, "evaluate", "all")
    assert workers.answers() == {0: "together", 1: "together", 2: "together"}


def test_silence_is_taken_for_absence_after_a_while_and_at_once_the_next_time():
    workers = Workers()
    fits = workers.fit_together()
    first = workers.enter(0, "predict", is_nested=True)
    assert workers.answers(PATIENCE_SECONDS - 1) == {}
    assert workers.answers(2) == {0: "alone"}
    workers.leave(0, first)
    workers.enter(0, "predict", is_nested=True)
    assert workers.answers() == {0: "alone"}
    assert workers.conflict(100) is None
    assert fits == [1, 1]


def test_a_worker_that_is_only_slow_is_waited_for_the_next_time():
    workers = Workers()
    first = workers.enter(0, "evaluate")
    assert workers.answers(PATIENCE_SECONDS + 1) == {0: "alone"}
    late = workers.enter(1, "evaluate")
    assert workers.answers(100) == {}  # rank 0 is still computing
    workers.leave(0, first)
    assert workers.answers(PATIENCE_SECONDS + 1) == {1: "alone"}
    workers.leave(1, late)
    workers.enter(0, "evaluate")
    assert workers.answers() == {}
    workers.enter(1, "evaluate")
    assert workers.answers() == {0: "together", 1: "together"}


def test_a_worker_that_is_still_leaving_the_last_call_is_waited_for():
    workers = Workers()
    fits = workers.fit_together()
    workers.leave(1, fits[1])
    workers.enter(1, "evaluate")
    assert workers.answers(100) == {}  # the chief saves a checkpoint
    workers.leave(0, fits[0])
    assert workers.answers(1) == {}
    workers.enter(0, "evaluate")
    assert workers.answers() == {0: "together", 1: "together"}


def test_a_worker_in_sparks_barrier_does_not_join():
    workers = Workers()
    workers.barrier(1)
    workers.enter(0, "predict")
    assert workers.answers() == {0: "alone"}


@pytest.mark.parametrize("are_checked", [True, False])
def test_a_fit_that_others_cannot_join_is_a_conflict(are_checked):
    workers = Workers(are_checked=are_checked)
    workers.enter(0, "fit")
    assert workers.answers() == ({0: "together"} if are_checked else {})
    assert workers.conflict(100) is None
    workers.done = {1}
    assert workers.conflict(CONFLICT_SECONDS - 1) is None
    rank, text = workers.conflict(1.5)
    assert rank == 0
    assert text.startswith(
        "Rank 0 is in fit, called at line of fit, but rank 1 has returned from the training function."
    )
    assert "not under a condition such as `if get_context().is_chief`" in text


def test_a_fit_while_another_worker_waits_in_sparks_barrier_is_a_conflict():
    workers = Workers()
    fits = workers.fit_together()
    for rank, number in enumerate(fits):
        workers.leave(rank, number)
    workers.barrier(1)
    assert workers.conflict(100) is None
    workers.enter(0, "fit")
    workers.answers()
    assert "rank 1 is in BarrierTaskContext.barrier" in workers.conflict(CONFLICT_SECONDS)[1]
    workers.barrier(1, is_entered=False)
    assert workers.conflict(100) is None


def test_different_calls_that_need_all_workers_are_a_conflict():
    workers = Workers(are_checked=False)
    workers.enter(0, "fit")
    workers.enter(1, "evaluate", may_be_alone=False)
    assert workers.answers(100) == {}
    assert "but rank 1 is in evaluate, called at line of evaluate" in workers.conflict(CONFLICT_SECONDS)[1]


def test_a_call_that_another_worker_is_about_to_leave_is_not_a_conflict():
    workers = Workers(are_checked=False)
    fits = workers.fit_together()
    workers.leave(1, fits[1])
    workers.enter(1, "evaluate", may_be_alone=False)  # while the chief saves a model in the last callback of fit
    assert workers.conflict(100) is None
    workers.leave(0, fits[0])
    workers.enter(0, "evaluate", may_be_alone=False)
    assert workers.answers() == {0: "together", 1: "together"}


def test_the_last_worker_makes_its_calls_alone_even_after_a_lost_connection():
    workers = Workers(3)
    workers.calls.lose()
    workers.done = {1, 2}
    workers.enter(0, "predict")
    assert workers.answers() == {0: "alone"}


def test_the_end_of_a_fit_is_not_a_conflict():
    workers = Workers()
    fits = workers.fit_together()
    workers.leave(1, fits[1])
    workers.done = {1}  # while the chief saves a checkpoint
    assert workers.conflict(100) is None


def test_a_lost_connection_ends_the_guessing():
    workers = Workers(3, are_checked=False)
    workers.enter(0, "predict")
    workers.enter(1, "fit")
    workers.calls.lose()
    assert workers.answers() == {0: "together", 1: "together"}
    workers.done = {2}
    assert workers.conflict(100) is None


def known(*calls, joined=0, barrier=None):
    """Return what a hello says of a rank's calls, given as number, method and state."""
    facts = {"type": "call", "may_be_alone": True, "is_nested": False, "line": "line"}
    opened = [{**facts, "number": n, "method": method, "key": method, "state": state} for n, method, state in calls]
    return {"open": opened, "joined": joined, "barrier": barrier}


def test_nothing_is_guessed_while_a_rank_has_no_connection_for_a_moment():
    workers = Workers()
    workers.enter(0, "predict")
    workers.calls.leave(1, workers.now)
    assert workers.answers(AWAY_SECONDS - 1) == {}
    assert workers.calls.restore(1, known(), workers.now) == []
    assert workers.answers(1) == {}  # it may be about to make the same call
    assert workers.answers(PATIENCE_SECONDS) == {0: "alone"}
    assert not workers.calls.are_lost


def test_a_call_that_was_announced_over_a_lost_connection_is_made_together():
    workers = Workers()
    workers.enter(0, "evaluate")
    workers.calls.leave(1, workers.now)
    workers.calls.restore(1, known((1, "evaluate", "waiting")), workers.now)
    assert workers.calls.are_all_waiting
    assert workers.answers() == {0: "together", 1: "together"}


@pytest.mark.parametrize("answer", ["together", "alone"])
def test_an_answer_that_was_lost_is_repeated(answer):
    workers = Workers()
    workers.enter(0, "evaluate")
    number = workers.enter(1, "evaluate") if answer == "together" else None
    assert workers.answers(100)[0] == answer
    workers.calls.leave(0, workers.now)
    assert workers.calls.restore(0, known((1, "evaluate", "waiting")), workers.now) == [(0, 1, answer)]
    assert workers.answers(100) == {}
    assert workers.calls.is_alone(0) == (answer == "alone")
    assert number is None or workers.conflict(100) is None


def test_the_end_of_a_call_that_was_not_heard_of_counts():
    workers = Workers()
    workers.fit_together()
    workers.calls.leave(0, workers.now)
    workers.leave(1, 1)
    workers.calls.restore(0, known(joined=1), workers.now)
    workers.enter(1, "fit")
    workers.enter(0, "fit")
    assert workers.answers() == {0: "together", 1: "together"}


def test_a_rank_that_stays_away_makes_its_calls_together_and_so_do_the_others():
    workers = Workers(3)
    workers.enter(0, "evaluate")
    workers.calls.leave(1, workers.now)
    assert workers.answers(AWAY_SECONDS) == {0: "together"}
    workers.calls.restore(1, known((1, "evaluate", "together"), joined=1), workers.now)
    workers.enter(2, "evaluate")
    workers.answers(100)
    assert workers.calls.are_lost
    assert workers.conflict(100) is None


def test_a_rank_that_has_returned_is_not_missed():
    workers = Workers(3)
    workers.enter(0, "predict")
    workers.done = {1}
    workers.calls.leave(1, workers.now)
    assert workers.answers(PATIENCE_SECONDS + 1) == {0: "alone"}


def test_a_barrier_that_was_entered_meanwhile_is_known():
    workers = Workers()
    workers.calls.leave(1, workers.now)
    workers.calls.restore(1, known(barrier="BarrierTaskContext.barrier"), workers.now)
    workers.enter(0, "predict")
    assert workers.answers() == {0: "alone"}
