"""From where the workers of a group connect to each other."""

import socket
import sys
from dataclasses import replace

import pytest

from spark_tensorflow_distributor.process_group.spec import Member
from spark_tensorflow_distributor.runtime.agent.peer_addresses import own_addresses, peer_addresses
from spark_tensorflow_distributor.runtime.agent.rendezvous import MemberFacts


def member(rank, address, *sources):
    return MemberFacts(rank, "host", "2.21.0", Member(address, 5000), sources)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_a_host_knows_the_addresses_that_it_can_bind():
    found = own_addresses()
    assert "127.0.0.1" in found
    for address in found:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if not address.startswith("fe80"):  # which needs an interface
            with socket.socket(family, socket.SOCK_STREAM) as sock:
                sock.bind((address, 0))


def test_all_addresses_of_all_hosts_are_accepted():
    members = [member(0, "10.0.0.1", "10.0.0.1", "192.168.0.1", "fd00::1"), member(1, "10.0.0.2", "10.0.0.2")]
    assert peer_addresses(members) == (("10.0.0.1", "10.0.0.2", "192.168.0.1", "fd00::1"), "")
    assert peer_addresses([member(0, "[fd00::1]", "fd00::1")]) == (("fd00::1",), "")
    assert peer_addresses([member(0, "localhost", "10.0.0.1")])[1] == ""


def test_a_worker_behind_address_translation_is_found():
    addresses, problem = peer_addresses([member(0, "10.0.0.1", "10.0.0.1"), member(1, "203.0.113.9", "10.0.0.2")])
    assert addresses == ()
    assert "rank 1 is known as 203.0.113.9 (203.0.113.9), which is none of its interfaces (10.0.0.2)" in problem
    assert "firewall" in problem


def test_without_a_filter_there_is_nothing_to_say():
    assert peer_addresses([replace(member(0, "203.0.113.9"), sources=None)]) == ((), "")


def test_hosts_that_cannot_be_resolved_or_do_not_know_their_interfaces():
    assert "no address" in peer_addresses([member(0, "no-such-host.invalid", "10.0.0.1")])[1]
    assert "unknown" in peer_addresses([member(0, "10.0.0.1")])[1]
