"""The trainer's end of the connection to its agent."""

import socket
import threading
from contextlib import closing

import pytest

from spark_tensorflow_distributor.runtime.trainer import control as module
from spark_tensorflow_distributor.runtime.trainer.control import Control
from spark_tensorflow_distributor.runtime.wire import frame, receive


@pytest.fixture
def agent_socket():
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        yield ours, theirs


ENTRY = {"fit": 0, "epoch": 0}


def stop(stops_all=False, fits=()):
    return frame({"type": "stop_training", "stops": {"all": stops_all, "fits": list(fits)}})


def test_a_run_without_callbacks_waits_for_nothing(agent_socket):
    agent, sock = agent_socket
    control = Control(sock)
    control.end_epoch(ENTRY)
    assert receive(agent) == {"type": "epochs", "entries": [ENTRY]}
    assert not control.should_stop(0)


def test_requests_name_one_fit_or_all(agent_socket):
    agent, sock = agent_socket
    control = Control(sock)
    agent.sendall(stop(fits=[1, None]))
    assert [control.should_stop(fit) for fit in (0, 1, None)] == [False, True, True]
    agent.sendall(stop(stops_all=True))
    assert control.should_stop(0)


def test_an_epoch_waits_for_the_answer_to_its_own_question(agent_socket):
    agent, sock = agent_socket
    control = Control(sock, waits_for_callbacks=True)

    def answer():
        for number in (1, 2):
            assert receive(agent)["question"] == number
        agent.sendall(frame({"type": "answer", "question": 1}) + stop(fits=[0]))
        agent.sendall(frame({"type": "answer", "question": 2}))

    control.send({"type": "epochs", "entries": [], "question": 1})
    control._asked = 1  # a question whose answer came too late
    thread = threading.Thread(target=answer)
    thread.start()
    control.end_epoch(ENTRY)
    thread.join()
    assert control.should_stop(0)


def test_slow_callbacks_do_not_stop_training(agent_socket, monkeypatch):
    monkeypatch.setattr(module, "_CALLBACK_SECONDS", 0.05)
    _, sock = agent_socket
    control = Control(sock, waits_for_callbacks=True)
    control.end_epoch(ENTRY)
    assert not control.should_stop(0)


def test_an_agent_that_is_gone_answers_everything(agent_socket):
    agent, sock = agent_socket
    control = Control(sock, waits_for_callbacks=True)
    agent.close()
    control.end_epoch(ENTRY)
    assert not control.should_stop(0)
    assert not control.wait_for_release()


def test_only_a_release_ends_the_wait_for_the_others(agent_socket):
    agent, sock = agent_socket
    agent.sendall(stop(stops_all=True) + frame({"type": "release"}))
    assert Control(sock).wait_for_release()


def test_a_call_waits_for_its_answer_and_notes_other_messages(agent_socket):
    agent, sock = agent_socket
    control = Control(sock)
    answers = []

    def ask():
        for method in ("predict", "fit"):
            number, how = control.ask({"method": method})
            answers.append(how)
            control.leave(number)

    thread = threading.Thread(target=ask)
    thread.start()
    for method, how in (("predict", "alone"), ("fit", "together")):
        question = receive(agent)
        assert (question["type"], question["method"]) == ("call", method)
        agent.sendall(stop(fits=[4]) + frame({"type": "call_answer", "number": question["number"], "how": how}))
        assert receive(agent) == {"type": "call_left", "number": question["number"]}
    thread.join(10)
    assert answers == ["alone", "together"]
    assert control.should_stop(4)


def test_waiting_in_sparks_barrier_and_in_tensorflow_is_announced(agent_socket):
    agent, sock = agent_socket
    control = Control(sock)
    with control.in_barrier("barrier", "train (train.py, line 3)"), control.forming():
        pass
    messages = [receive(agent) for _ in range(4)]
    assert [(each["type"], each["is_entered"]) for each in messages] == [
        ("barrier", True),
        ("forming", True),
        ("forming", False),
        ("barrier", False),
    ]
    assert messages[0]["text"] == "BarrierTaskContext.barrier, called at train (train.py, line 3)"
