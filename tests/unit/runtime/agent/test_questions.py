"""The calls of a trainer, with a connection that is lost and comes back."""

import math

import pytest

from spark_tensorflow_distributor.runtime.agent.questions import CallQuestions
from spark_tensorflow_distributor.runtime.specs import AWAY_SECONDS


class Link:
    is_open = True

    def __init__(self):
        self.sent, self.hello = [], {}

    def send(self, message):
        self.sent.append(message)

    def update_hello(self, **changes):
        self.hello.update(changes)


@pytest.fixture
def link():
    return Link()


@pytest.fixture
def replies():
    return []


@pytest.fixture
def questions(link, replies):
    return CallQuestions(link, replies.append)


def call(number):
    return {"type": "call", "number": number, "method": "evaluate"}


def answer(number, how="together"):
    return {"type": "call_answer", "number": number, "how": how}


def test_the_hello_says_what_the_driver_may_not_have_heard(questions, link, replies):
    questions.put(call(1))
    assert link.hello["calls"] == {"open": [{**call(1), "state": "waiting"}], "joined": 0, "barrier": None}
    questions.answer(answer(1))
    questions.put(call(2))
    questions.answer(answer(2, "alone"))
    assert [each["state"] for each in link.hello["calls"]["open"]] == ["together", "alone"]
    assert link.hello["calls"]["joined"] == 1
    questions.put({"type": "call_left", "number": 2})
    questions.put({"type": "barrier", "text": "barrier", "is_entered": True})
    assert [each["number"] for each in link.hello["calls"]["open"]] == [1]
    assert link.hello["calls"]["barrier"] == "barrier"
    questions.put({"type": "barrier", "text": "barrier", "is_entered": False})
    assert link.hello["calls"]["barrier"] is None
    assert [each["type"] for each in link.sent] == ["call", "call", "call_left", "barrier", "barrier"]
    assert len(replies) == 2


def test_a_repeated_answer_reaches_the_trainer_once(questions, replies):
    questions.put(call(1))
    questions.answer(answer(1))
    questions.answer(answer(1))
    assert replies == [answer(1)]


@pytest.mark.parametrize(("lost_for", "answered"), [(AWAY_SECONDS - 1, False), (AWAY_SECONDS, True), (math.inf, True)])
def test_without_the_driver_calls_are_made_together(questions, link, replies, lost_for, answered):
    link.is_open = False
    questions.put(call(1))
    questions.answer_without_driver(lost_for)
    assert (replies == [answer(1)]) == answered
    assert link.hello["calls"]["joined"] == answered
    assert link.sent == []


def test_an_open_channel_is_awaited(questions, replies):
    questions.put(call(1))
    questions.answer_without_driver(0.0)
    assert replies == []
