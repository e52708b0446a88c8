"""The driver's addresses, with IPv4 and IPv6."""

import socket

import pytest

from spark_tensorflow_distributor.runtime.driver import addresses
from spark_tensorflow_distributor.runtime.driver.addresses import address_towards, family_of
from spark_tensorflow_distributor.runtime.driver.channel import Channel

NAMES = {"only_6": [(socket.AF_INET6, "::1")], "both": [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]}


@pytest.fixture
def names(monkeypatch):
    real = socket.getaddrinfo

    def getaddrinfo(host, port, type=0, **options):
        if host not in NAMES:
            return real(host, port, type=type, **options)
        return [(family, type, 0, "", (address, port)) for family, address in NAMES[host]]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("address", "family"),
    [
        ("127.0.0.1", socket.AF_INET), ("0.0.0.0", socket.AF_INET), ("::1", socket.AF_INET6),
        ("::", socket.AF_INET6), ("only_6", socket.AF_INET6), ("both", socket.AF_INET),
    ],
)  # fmt: skip
def test_the_family_of_a_listener(names, address, family):
    assert family_of(address) == family


def test_an_unknown_name_is_an_error():
    with pytest.raises(OSError, match=r"not known|failure|No address"):
        family_of("no_such_host.invalid")


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("only_6", "::1"),
        ("both", "127.0.0.1"),
        ("no.invalid", "127.0.0.1"),
    ],
)
def test_the_own_address_as_another_host_sees_it(names, host, own):
    assert address_towards(host) == own


def test_the_channel_listens_on_ipv6():
    channel = Channel(b"x" * 32, "::1", ("::1",))
    try:
        ((host, port),) = channel.addresses
        socket.create_connection((host, port), timeout=5).close()
    finally:
        channel.close()
