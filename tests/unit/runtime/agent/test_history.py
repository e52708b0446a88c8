"""The history on its way to the driver, through lost connections."""

from spark_tensorflow_distributor.runtime.agent.history import HistoryRelay


class Link:
    def __init__(self):
        self.is_open, self.sent = True, []

    def send(self, message):
        self.sent.append(message["number"])


def test_messages_are_kept_until_the_driver_has_taken_them():
    link = Link()
    relay = HistoryRelay(link)
    for _ in range(3):
        relay.put({"type": "epochs", "entries": []})
    assert link.sent == [0, 1, 2]
    relay.taken(1)
    assert [message["number"] for message in relay.waiting] == [2]
    link.is_open = False
    relay.put({"type": "epochs", "entries": []})
    assert link.sent == [0, 1, 2]
    link.is_open, link.sent = True, []
    relay.resend()
    assert link.sent == [2, 3]
    relay.taken(3)
    relay.taken(3)
    assert relay.waiting == []


def test_the_trainer_is_answered_when_the_driver_has_taken_its_epoch():
    relay = HistoryRelay(Link())
    assert relay.answer() is None
    relay.put({"type": "epochs", "entries": []})
    assert relay.answer() is None
    relay.put({"type": "epochs", "entries": [], "question": 1})
    relay.taken(0)
    assert relay.answer() is None
    relay.taken(1)
    assert relay.answer() == {"type": "answer", "question": 1}
    assert relay.answer() is None


def test_the_trainer_does_not_wait_for_a_driver_that_cannot_be_reached():
    link = Link()
    relay = HistoryRelay(link)
    relay.put({"type": "epochs", "entries": [], "question": 1})
    link.is_open = False
    assert relay.answer() == {"type": "answer", "question": 1}
    relay.put({"type": "epochs", "entries": [], "question": 2})
    assert relay.answer() == {"type": "answer", "question": 2}
    link.is_open = True
    relay.put({"type": "epochs", "entries": [], "question": 3})
    assert relay.answer() is None
