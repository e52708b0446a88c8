import pytest

from spark_tensorflow_distributor.inference.cache import ModelCache


def test_the_models_that_were_used_last_are_kept():
    cache, loaded = ModelCache(), []

    def use(key):
        return cache.get(key, lambda: loaded.append(key) or f"model {key}")

    assert [use(key) for key in "abaca"] == ["model a", "model b", "model a", "model c", "model a"]
    assert loaded == ["a", "b", "c"]
    use("b")
    assert loaded == ["a", "b", "c", "b"]


def test_room_is_made_before_a_model_is_loaded():
    cache = ModelCache()
    for key in "ab":
        cache.get(key, object)
    assert cache.get("c", lambda: list(cache._kept)) == ["b"]


def test_a_model_that_cannot_be_loaded_is_not_kept():
    cache = ModelCache()

    def fail():
        raise ValueError("broken")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            cache.get("a", fail)
    assert cache.get("a", lambda: 1) == 1
