import math

from spark_tensorflow_distributor import StepComparison


def comparison(gradients=(), logs=(), causes=()):
    return StepComparison(2, 1e-3, dict(gradients), dict(logs), tuple(causes))


def test_equal_gradients_and_logs():
    found = comparison({"kernel": 2e-7}, {"loss": (1.0, 1.0 + 1e-6), "constant": (0.0, 0.0)})
    assert found.is_equal
    assert str(found) == (
        "A step on 2 workers computes the same gradients and logs as one process (largest relative "
        "difference of a gradient: 2.0e-07)."
    )


def test_what_differs_is_listed_with_the_largest_first():
    gradients = {f"kernel {index}": index / 100 for index in range(9)}
    found = comparison(gradients, {"loss": (2.0, 1.0), "mae": (1.0, 1.0)}, ["a cause"])
    lines = str(found).splitlines()
    assert not found.is_equal
    assert lines[1] == "  kernel 8 differs by 8%"
    assert lines[6:8] == ["  and 3 more, of 9 in all", "  loss is 1 instead of 2"]
    assert lines[9] == "  - a cause"
    assert "mae" not in str(found)


def test_what_is_not_a_number_is_different():
    assert not comparison({"kernel": math.nan}).is_equal
    assert not comparison(logs={"loss": (1.0, math.nan)}).is_equal
    assert not comparison(logs={"loss": (0.0, 1.0)}).is_equal
