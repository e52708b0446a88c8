"""How the driver balances shards: what it tells to whom, and what it repeats."""

import json
import random

import pytest

from spark_tensorflow_distributor.data.balance import merge_facts, plan_transfers
from spark_tensorflow_distributor.data.layout import ColumnFacts, FrameFacts
from spark_tensorflow_distributor.runtime.driver.shard_balance import ShardBalance


def facts_of(rows, columns=2):
    return [FrameFacts(each, (ColumnFacts(nulls=each, lengths=((1, each),)),) * columns).to_json() for each in rows]


def of_type(commands, kind):
    return [(rank, message) for rank, message in commands if message["type"] == kind]


def test_each_rank_is_told_the_facts_about_all_and_its_own_transfers():
    rows = [(10, 5), (12, 5), (14, 9), (12, 5)]
    balance = ShardBalance(4)
    for rank in (2, 0, 3):
        assert balance.count(rank, facts_of(rows[rank])) == []
    commands = json.loads(json.dumps(balance.count(1, facts_of(rows[1]))))
    ((rank, message),) = of_type(commands, "facts")
    assert rank is None
    frames = [merge_facts([FrameFacts.from_json(facts_of(each)[frame]) for each in rows]) for frame in (0, 1)]
    assert list(map(FrameFacts.from_json, message["facts"])) == frames
    told = {rank: message["transfers"] for rank, message in of_type(commands, "transfers")}
    assert told.keys() == set(range(4))
    expected = [[frame, *each] for frame in (0, 1) for each in plan_transfers([counts[frame] for counts in rows])]
    for rank in range(4):
        assert told[rank] == [each for each in expected if rank in each[1:3]]
    assert told[0] == [[0, 2, 0, 2], [1, 2, 0, 1]]


def test_what_was_lost_with_a_connection_is_repeated():
    balance = ShardBalance(2)
    rows = {"type": "pass", "from": 1, "to": 0, "frame": 0, "data": "eA=="}
    assert balance.catch_up(0, {"rank": 0}) == []
    balance.count(0, facts_of([1]))
    commands = balance.catch_up(1, {"rank": 1, "facts": facts_of([3]), "passed": [rows]})
    assert (0, {**rows, "type": "passed"}) in commands
    assert balance.count(1, facts_of([3])) == []  # it arrives twice
    again = balance.catch_up(0, {"rank": 0, "facts": facts_of([1])})
    assert [message["type"] for _, message in again] == ["transfers", "facts", "passed"]
    assert {rank for rank, _ in again} == {0}


@pytest.mark.parametrize("ranks", [100, 400])
def test_messages_grow_with_the_columns_but_not_with_the_ranks(ranks):
    chance = random.Random(7)
    balance = ShardBalance(ranks)
    for rank in range(ranks):
        commands = balance.count(rank, facts_of([1000 + chance.randrange(-2, 3)], columns=50))
    assert len(of_type(commands, "transfers")) == ranks
    assert max(len(json.dumps(message)) for _, message in of_type(commands, "transfers")) < 500
    ((_, message),) = of_type(commands, "facts")
    assert len(json.dumps(message)) < 6000
