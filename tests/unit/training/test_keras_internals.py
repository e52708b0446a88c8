"""What Keras has no public names for, with stand-ins for releases that have the private names and that lack them."""

from types import SimpleNamespace

from spark_tensorflow_distributor.training import keras_internals


def test_layers_within_layers_are_found_if_keras_shows_them():
    outer = SimpleNamespace(layers=["inner"])
    model = SimpleNamespace(layers=[outer], _flatten_layers=lambda: iter([model, outer, "inner"]))
    assert keras_internals.layers_of(model) == [model, outer, "inner"]
    del model._flatten_layers
    assert keras_internals.layers_of(model) == [model, outer]


def test_each_kind_of_optimizer_is_built():
    built = []
    for name in ("build", "_create_all_weights"):
        keras_internals.build_optimizer(SimpleNamespace(**{name: built.append}), [name])
    keras_internals.build_optimizer(SimpleNamespace(), ["nothing"])
    assert built == [["build"], ["_create_all_weights"]]


def test_variables_that_tf_keras_lists_nowhere():
    scale = SimpleNamespace(_weights={"current": "scale", "good": "steps"})
    model = SimpleNamespace(optimizer=SimpleNamespace(_loss_scale=scale), _train_counter="counter")
    assert keras_internals.unlisted_variables(model) == ["scale", "steps", "counter"]
    model.optimizer._loss_scale = 128.0  # a fixed scale
    assert keras_internals.unlisted_variables(model) == ["counter"]
    assert keras_internals.unlisted_variables(SimpleNamespace()) == []


def test_the_initial_epoch_is_set_only_where_keras_has_one():
    model = SimpleNamespace(_initial_epoch=None)
    keras_internals.set_initial_epoch(model, 3)
    assert keras_internals.initial_epoch_of(model) == 3
    other = SimpleNamespace()
    keras_internals.set_initial_epoch(other, 3)
    assert vars(other) == {}
    assert keras_internals.initial_epoch_of(other) is None
