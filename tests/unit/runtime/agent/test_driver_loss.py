import pytest

from spark_tensorflow_distributor.runtime.agent.driver_loss import (
    AWAIT_VERDICT_SECONDS,
    DEAD_DRIVER_SECONDS,
    ISOLATED_SECONDS,
    STAY_SECONDS,
    DriverLossPolicy,
)


@pytest.fixture
def policy():
    return DriverLossPolicy(driver_is_client=False)


def lose(policy, now):
    assert policy.should_reconnect(now)
    return policy.on_connect_failed(now, None, now)


def test_reconnects_once_a_second(policy):
    assert lose(policy, 10.0) is None
    assert not policy.should_reconnect(10.9)
    assert policy.should_reconnect(11.0)


@pytest.mark.parametrize(("driver_is_client", "is_dead"), [(True, True), (False, False)])
def test_a_driver_that_refuses_connections_is_dead_under_connect(driver_is_client, is_dead):
    policy = DriverLossPolicy(driver_is_client=driver_is_client)
    assert policy.should_reconnect(0.0)
    assert policy.on_connect_failed(DEAD_DRIVER_SECONDS, 0.0, 0.0) is None
    reason = policy.on_connect_failed(DEAD_DRIVER_SECONDS + 1, 0.0, 0.0)
    assert reason == ("The driver has ended." if is_dead else None)


def test_a_silent_driver_is_not_dead():
    policy = DriverLossPolicy(driver_is_client=True)
    assert policy.should_reconnect(0.0)
    assert policy.on_connect_failed(DEAD_DRIVER_SECONDS + 1, None, 0.0) is None


def test_an_isolated_worker_stops_unless_it_makes_progress(policy):
    assert lose(policy, 0.0) is None
    later = ISOLATED_SECONDS + 1
    assert policy.on_connect_failed(later, None, last_activity=later - 1) is None
    assert "cannot be reached" in policy.on_connect_failed(later, None, last_activity=0.0)


def test_reconnecting_resets_the_clock(policy):
    lose(policy, 0.0)
    policy.on_reconnected()
    later = ISOLATED_SECONDS + 1
    assert policy.should_reconnect(later)
    assert policy.on_connect_failed(later, None, last_activity=0.0) is None


def test_a_failed_worker_waits_for_the_verdict(policy):
    def waits(now, has_exited):
        return policy.should_wait_for_verdict(now, 100.0, has_failed=True, has_exited=has_exited)

    assert waits(100.0 + AWAIT_VERDICT_SECONDS, has_exited=True)
    assert not waits(101.0 + AWAIT_VERDICT_SECONDS, has_exited=False)


def test_a_worker_that_returned_waits_for_its_peers_while_its_trainer_lives(policy):
    def waits(now, has_exited):
        return policy.should_wait_for_verdict(now, 100.0, has_failed=False, has_exited=has_exited)

    assert waits(10_000.0, has_exited=False)
    assert not waits(100.0, has_exited=True)


def test_a_worker_without_a_driver_waits_for_its_peers_for_some_time(policy):
    lose(policy, 0.0)

    def waits(now):
        return policy.should_wait_for_verdict(now, 100.0, has_failed=False, has_exited=False)

    assert waits(100.0 + STAY_SECONDS)
    assert not waits(101.0 + STAY_SECONDS)
