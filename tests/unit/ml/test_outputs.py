"""What a model's loss and last layer say about its output."""

from types import SimpleNamespace

import pytest

from spark_tensorflow_distributor import ConfigurationError, DataError
from spark_tensorflow_distributor.ml.outputs import check_loss, declared_width, gives_logits


def linear(x):
    return x


def softmax(x):
    return x


def model(loss, width=3, activation=softmax, more=()):
    layer = SimpleNamespace(name="last", activation=activation)
    return SimpleNamespace(
        loss=loss, layers=[layer], operations=[layer, *more], outputs=[SimpleNamespace(shape=(None, width))]
    )


def loss(name, from_logits):
    return SimpleNamespace(name=name, from_logits=from_logits)


def loss_object(name, module):
    return type("Loss", (), {"__module__": module, "name": name})()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (model("sparse_categorical_crossentropy"), False),
        (model(loss("sparse_categorical_crossentropy", True), activation=linear), True),
        (model(lambda y, p: 0, activation=linear), True),
        (model(lambda y, p: 0, activation=linear, more=["softmax"]), False),
        (SimpleNamespace(loss="mse"), False),
    ],
)
def test_logits(found, expected):
    assert gives_logits(found) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (model("categorical_crossentropy"), "Compile it with sparse_categorical_crossentropy"),
        (model({"last": "CategoricalHinge"}), "CategoricalHinge, which needs one-hot labels"),
        (model("binary_crossentropy"), "the output's 3 values per row"),
        (model("mse"), "loss is mse, which compares the output's 3 values .* Compile it with sparse_categorical"),
        (model(["MeanSquaredError"]), "loss is MeanSquaredError"),
        (model(loss_object("huber_loss", "tf_keras.src.losses")), "loss is huber_loss"),
        (model("SparseCategoricalCrossentropy", width=1), "its output has one value per row"),
        (model("sparse_categorical_crossentropy", activation=linear), "'last', has no activation"),
        (model(loss("binary_crossentropy", False), width=1, activation=linear), "activation='sigmoid'"),
    ],
)
def test_losses_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ConfigurationError, match=message):
        check_loss(wrong)


@pytest.mark.parametrize(
    "right",
    [
        model("sparse_categorical_crossentropy"),
        model("sparse_categorical_crossentropy", activation=linear, more=["softmax"]),
        model(loss("sparse_categorical_crossentropy", True), activation=linear),
        model("binary_crossentropy", width=1),
        model("mse", width=1, activation=linear),
        model("mse", width=None),
        model(loss_object("mean_squared_error", "mine")),
        model(loss_object("categorical_crossentropy", "mine")),
        model("categorical_generalized_cross_entropy"),
        SimpleNamespace(loss=None),
    ],
)
def test_losses_that_fit(right):
    check_loss(right)


def test_several_outputs_are_refused():
    two = SimpleNamespace(outputs=[SimpleNamespace(shape=(None, 1))] * 2)
    with pytest.raises(DataError, match="one output"):
        declared_width(two)
    assert declared_width(SimpleNamespace(outputs=[SimpleNamespace(shape=(None,))])) == 1
