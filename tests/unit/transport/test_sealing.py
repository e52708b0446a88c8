"""What two ends agree on in the handshake, and what they accept afterwards."""

import os

import pytest

from spark_tensorflow_distributor.transport.handshake import DRIVER, Handshake, NotAuthenticError
from spark_tensorflow_distributor.transport.sealing import TAG_BYTES, make_sealers
from spark_tensorflow_distributor.transport.stream import MAX_RECORD_BYTES, NotARecordError, SealedStream

SECRET = b"s" * 32
PROTECTIONS = ["light", "integrity", "privacy"]


def shaken(secret=SECRET, generation=0, number=3, acceptor=DRIVER):
    """Return the keys of both ends after a handshake, the accepting end's first; None if it rejects the other."""
    connecting, accepting = Handshake(secret, generation, number), Handshake(SECRET, 0, DRIVER)
    challenge = accepting.challenge()
    answer = connecting.answer(challenge, acceptor)
    admission = accepting.check(challenge, answer.data)
    if admission is None:
        return None
    assert (admission.peer, admission.proof) == (number, answer.proof)
    return admission.keys, answer.keys


def test_both_ends_have_the_same_keys_and_every_connection_others():
    (near, far), (other, _) = shaken(), shaken()
    assert (near.sending, near.receiving) == (far.receiving, far.sending)
    assert len({near.sending, near.receiving, other.sending, other.receiving, SECRET}) == 5


@pytest.mark.parametrize("wrong", [{"secret": b"x" * 32}, {"generation": 1}, {"acceptor": 0}])
def test_others_are_rejected(wrong):
    assert shaken(**wrong) is None


def test_an_answer_cannot_be_used_for_another_rank_or_challenge():
    accepting = Handshake(SECRET, 0, DRIVER)
    challenge = accepting.challenge()
    data = Handshake(SECRET, 0, 3).answer(challenge, DRIVER).data
    assert accepting.check(challenge, data) is not None
    assert accepting.check(accepting.challenge(), data) is None
    for place in range(len(data)):  # proof, rank, counter-challenge
        assert accepting.check(challenge, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]) is None


def sealers(protection):
    """Return the sealers of one direction: of its sender, and of its receiver."""
    near, far = shaken()
    return make_sealers(near, protection)[0], make_sealers(far, protection)[1]


@pytest.mark.parametrize("protection", PROTECTIONS)
@pytest.mark.parametrize("size", [0, 1, 28, 4096, 4097, 256 << 10])
@pytest.mark.parametrize("bulk", [False, True])
def test_records_arrive(protection, size, bulk):
    sender, receiver = sealers(protection)
    for in_place in (False, True, False):
        data = os.urandom(size)
        sent = b"".join(sender.seal(data, bulk=bulk))
        assert len(sent) == size + receiver.tag_bytes(bulk=bulk)
        if size > 16:  # fewer bytes may be in there by chance
            assert (data in sent) is (protection != "privacy")
        received, tag = bytearray(sent[:size]), sent[size:]
        if in_place:
            receiver.open_in_place(memoryview(received), tag, bulk=bulk)
        else:
            received = receiver.open(received, tag, bulk=bulk)
        assert received == data


@pytest.mark.parametrize("protection", PROTECTIONS)
@pytest.mark.parametrize("size", [28, 10_000])
@pytest.mark.parametrize("in_place", [False, True])
def test_changed_records_are_rejected(protection, size, in_place):
    for place in (0, size // 2, size - 1, size, size + TAG_BYTES - 1):
        sender, receiver = sealers(protection)
        sent = bytearray(b"".join(sender.seal(os.urandom(size))))
        sent[place] ^= 1
        with pytest.raises(NotAuthenticError):
            (receiver.open_in_place if in_place else receiver.open)(memoryview(sent)[:size], sent[size:])


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_records_can_be_neither_repeated_nor_left_out_nor_sent_back(protection):
    sender, receiver = sealers(protection)
    first, second = (b"".join(sender.seal(b"same")) for _ in range(2))
    with pytest.raises(NotAuthenticError):  # left out
        sealers(protection)[1].open(second[:4], second[4:])
    receiver.open(first[:4], first[4:])
    with pytest.raises(NotAuthenticError):  # repeated
        receiver.open(first[:4], first[4:])
    near, far = shaken()
    sent = b"".join(make_sealers(near, protection)[0].seal(b"same"))
    with pytest.raises(NotAuthenticError):  # sent back
        make_sealers(near, protection)[1].open(sent[:4], sent[4:])
    assert make_sealers(far, protection)[1].open(sent[:4], sent[4:]) == b"same"


def test_bulk_data_is_spared_only_if_that_was_agreed():
    for protection, is_spared in {"light": True, "integrity": False, "privacy": False}.items():
        sender, receiver = sealers(protection)
        sent = bytearray(b"".join(sender.seal(bytes(1000), bulk=True)))
        sent[5] ^= 1
        if is_spared:
            receiver.open(sent[:1000], sent[1000:], bulk=True)
        else:
            with pytest.raises(NotAuthenticError):
                receiver.open(sent[:1000], sent[1000:], bulk=True)


@pytest.mark.parametrize("protection", ["integrity", "privacy"])
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_streams_are_reassembled_from_any_pieces(protection, step):
    near, far = shaken()
    records = [b"", b"a", os.urandom(1000), b"last"]
    sender, receiver = SealedStream(near, protection), SealedStream(far, protection)
    sent = b"".join(part for record in records for part in sender.seal(record))
    received = [each for start in range(0, len(sent), step) for each in receiver.feed(sent[start : start + step])]
    assert received == records


def test_oversized_records_are_rejected_before_they_arrive():
    near, far = shaken()
    with pytest.raises(NotARecordError):
        list(SealedStream(far, "integrity").feed((MAX_RECORD_BYTES + 1).to_bytes(4, "big")))
    with pytest.raises(NotARecordError):
        SealedStream(near, "integrity").seal(bytes(MAX_RECORD_BYTES + 1))
