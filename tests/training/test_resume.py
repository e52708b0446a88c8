"""Training that is interrupted and resumed ends with the same result as uninterrupted training."""

import csv
import zipfile

import numpy as np
import pytest

from spark_tensorflow_distributor import CheckpointError, MirroredStrategyRunner, TrainingFailedError


@pytest.fixture
def runner(spark):
    def make(**options):
        options = {"num_slots": 2, "max_restarts": 1, "checkpoint_every": "4 steps", **options}
        return MirroredStrategyRunner(use_gpu=False, spark=spark, **options)

    return make


def program():
    """Return a training function with many kinds of data and callbacks, which may kill its last rank.

    The function is nested, so that it is pickled by value.
    """

    def train(
        data="dataset",
        optimizer="adam",
        kill=None,
        epochs=4,
        log=None,
        callbacks=(),
        shard=None,
        again=False,
        special="",
    ):
        import os
        import signal
        import time

        import numpy as np
        import tensorflow as tf
        from sklearn.datasets import load_digits

        from spark_tensorflow_distributor import get_context

        context = get_context()

        class Kill(tf.keras.callbacks.Callback):
            """Kills the last rank in the first attempt, at a step or in the evaluation of the second epoch."""

            seen = evaluated = 0  # over all calls to fit

            def on_train_batch_end(self, batch, logs=None):
                Kill.seen += 1
                self.end(Kill.seen == kill)

            def on_test_batch_end(self, batch, logs=None):
                Kill.evaluated += 1
                self.end(kill == "evaluation" and Kill.evaluated == 3)

            def end(self, is_due):
                if is_due and (context.attempt, context.rank) == (0, context.world_size - 1):
                    time.sleep(0.5)  # the last checkpoint may still be in transit
                    os.kill(os.getpid(), signal.SIGKILL)

        class Recorder(tf.keras.callbacks.Callback):
            """Records the first fit in objects that it changes in place."""

            def __init__(self):
                super().__init__()
                self.losses, self.steps = [], tf.Variable(0)

            def on_train_batch_end(self, batch, logs=None):
                self.losses.append(float(logs["loss"]))
                self.steps.assign_add(1)

        images, labels = load_digits(return_X_y=True)
        images, labels = (images[:1024] / 16).astype("float32"), labels[:1024].astype("int32")
        tf.keras.utils.set_random_seed(7)

        if special == "mixed_float16":
            tf.keras.mixed_precision.set_global_policy("mixed_float16")

        class TwoOptimizers(tf.keras.Sequential):
            """Trains its first layer and the others with separate optimizers, as GANs do."""

            second = None

            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(y, self(x, training=True)))
                variables = self.trainable_variables
                gradients = tape.gradient(loss, variables)
                self.optimizer.apply_gradients(zip(gradients[:2], variables[:2], strict=True))
                self.second[0].apply_gradients(zip(gradients[2:], variables[2:], strict=True))
                return {"loss": loss}

        class Centre(tf.keras.layers.Layer):
            """Subtracts a moving average, which does not grow linearly with the rows."""

            def build(self, shape):
                self.centre = self.add_weight(name="centre", shape=shape[-1:], initializer="zeros", trainable=False)

            def call(self, inputs, training=False):
                if training:
                    self.centre.assign(0.5 * self.centre + tf.reduce_mean(inputs, 0) ** 2)
                return inputs - self.centre

        def build():
            model = (TwoOptimizers if special == "own optimizers" else tf.keras.Sequential)(
                [
                    *([] if special == "unbuilt" else [tf.keras.layers.Input((64,))]),
                    tf.keras.layers.Dense(24, activation="relu"),
                    *([tf.keras.layers.BatchNormalization()] if special == "moving statistics" else []),
                    *([Centre()] if special == "moving centre" else []),
                    tf.keras.layers.Dense(10, activation="softmax", dtype="float32"),
                ]
            )
            chosen = {
                "adam": lambda: tf.keras.optimizers.Adam(0.005),
                "sgd": lambda: tf.keras.optimizers.SGD(0.1, momentum=0.9),
            }[optimizer]
            metrics = ["accuracy", tf.keras.metrics.SparseTopKCategoricalAccuracy(3, name="top")]
            if special == "own optimizers":
                model.second = [chosen()]
                model.compile(chosen())
                return model
            model.compile(chosen(), "sparse_categorical_crossentropy", metrics=metrics)
            return model

        class Shuffled(getattr(tf.keras.utils, "PyDataset", tf.keras.utils.Sequence)):
            """Draws a new order for each epoch; Keras also shuffles the batches."""

            order = np.arange(1024)

            def __len__(self):
                return 16

            def __getitem__(self, index):
                rows = self.order[64 * index : 64 * index + 64]
                return images[rows], labels[rows]

            def on_epoch_end(self):
                self.order = np.random.permutation(1024)

        def batches():
            while True:
                for start in range(0, 1024, 64):
                    yield images[start : start + 64], labels[start : start + 64]

        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        rows = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(1024, seed=3).with_options(options)
        arguments = {
            "dataset": lambda: {"x": rows.batch(64)},
            "unknown": lambda: {"x": rows.filter(lambda x, y: y >= 0).batch(64)},
            "repeated": lambda: {"x": rows.repeat().batch(64), "steps_per_epoch": 11},
            "arrays": lambda: {"x": images, "y": labels, "batch_size": 64, "shuffle": False},
            "shuffled arrays": lambda: {"x": images, "y": labels, "batch_size": 64},
            "sequence": lambda: {"x": Shuffled()},
            "generator": lambda: {"x": batches(), "steps_per_epoch": 11},
            "shard": lambda: {"x": shard.to_tf(NAMES, "label", batch_size=64, stack=True)},
            # The passes of the finite shard are longer than the epochs.
            "limited shard": lambda: {
                "x": shard.to_tf(NAMES, "label", batch_size=64, stack=True),
                "steps_per_epoch": 11,
            },
            "endless shard": lambda: {
                "x": shard.to_tf(NAMES, "label", batch_size=64, stack=True, repeat=True),
                "steps_per_epoch": 11,
            },
        }[data]()
        if special == "evaluation":
            arguments["validation_data"] = (images[:128], labels[:128])
        model = build()
        given = [recorder := Recorder(), Kill()]
        if "early" in callbacks:
            # Stops because of values from epochs before the interruption.
            given.append(tf.keras.callbacks.EarlyStopping("loss", min_delta=10.0, patience=3))
        if "plateau" in callbacks:
            given.append(tf.keras.callbacks.ReduceLROnPlateau("loss", min_delta=10.0, patience=2, factor=0.1))
        if "csv" in callbacks and context.is_chief:
            given.append(tf.keras.callbacks.CSVLogger(log))
        if "saves" in callbacks:
            path = f"{log}-{{epoch}}-{{batch}}.weights.h5"
            given.append(tf.keras.callbacks.ModelCheckpoint(path, save_freq=3, save_weights_only=True))
        if "backup" in callbacks:
            given.append(tf.keras.callbacks.BackupAndRestore(f"{log}-{context.rank}"))
        recorded = {"rates": []}
        given.append(
            tf.keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: recorded["rates"].append(float(model.optimizer.learning_rate.numpy()))
            )
        )
        histories = [model.fit(**arguments, epochs=epochs, callbacks=given)]
        if again:  # train another model, which starts from the result of the first
            first, model = model, build()
            model.set_weights([weight * 0.5 for weight in first.get_weights()])
            histories.append(model.fit(**arguments, epochs=2, callbacks=[Kill()]))
        return {
            "weights": [np.asarray(weight) for weight in model.get_weights()],
            "history": [history.history for history in histories],
            "epochs": [history.epoch for history in histories],
            "attempt": context.attempt,
            "losses": recorder.losses,
            "steps": int(recorder.steps.numpy()),
            **recorded,
        }

    NAMES = [f"p{index}" for index in range(64)]
    return train


@pytest.fixture(scope="module")
def frame(spark):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    table = np.c_[images[:1024] / 16, labels[:1024]].astype("float32").tolist()
    return spark.createDataFrame(table, ", ".join(f"{name} float" for name in [*[f"p{i}" for i in range(64)], "label"]))


def check_same(interrupted, whole):
    assert (interrupted["attempt"], whole["attempt"]) == (1, 0)
    for actual, expected in zip(interrupted["weights"], whole["weights"], strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert interrupted["epochs"] == whole["epochs"]
    assert interrupted["steps"] == whole["steps"] == len(whole["losses"])
    np.testing.assert_allclose(interrupted["losses"], whole["losses"], atol=1e-5)
    for actual, expected in zip(interrupted["history"], whole["history"], strict=True):
        assert actual.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(actual[name], expected[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("data", "kill"),
    [
        *[("dataset", 38), ("dataset", 34), ("unknown", 38), ("repeated", 30), ("arrays", 38), ("dataset", 5)],
        *[("shuffled arrays", 38), ("sequence", 38), ("sequence", 34)],
    ],
)
def test_all_kinds_of_data(runner, data, kill):
    whole = runner().run(program(), data=data)
    check_same(runner().run(program(), data=data, kill=kill), whole)


@pytest.mark.parametrize("data", ["sequence", "generator"])
def test_a_model_that_its_first_batch_builds(runner, data):
    whole = runner().run(program(), data=data, special="unbuilt")
    check_same(runner().run(program(), data=data, kill=25, special="unbuilt"), whole)


@pytest.mark.parametrize(
    ("slots", "data", "legacy", "kill", "where"),
    [
        (1, "shard", "0", 38, [(0, 2, 4)]),
        (2, "shard", "1", 38, [(0, 2, 4)]),
        (2, "endless shard", "0", 38, [(0, 3, 4)]),
        (2, "limited shard", "0", 22, [(0, 2, 4)]),
        # In the second fit, whose passes have other orders.
        (2, "shard", "0", 86, [(0, 4, 0), (1, 1, 4)]),
        (1, "endless shard", "1", 63, [(0, 4, 0), (1, 1, 4)]),
    ],
)
def test_a_dataframe(runner, frame, tmp_path, slots, data, legacy, kill, where):
    # The order of a shard's rows depends on the run, or on its checkpoint_dir.
    options = {"checkpoint_dir": str(tmp_path), "num_slots": slots, "env": {"TF_USE_LEGACY_KERAS": legacy}}
    whole = runner(**options).run(program(), data=data, shard=frame, again=True)
    interrupted = runner(**options)
    check_same(interrupted.run(program(), data=data, shard=frame, again=True, kill=kill), whole)
    resumed = interrupted.report.attempts[1].resumed
    assert [(at["fit"], at["epoch"], at["step"]) for at in resumed] == where


def test_sgd_on_one_worker_and_on_three(runner):
    for slots in (1, 3):
        whole = runner(num_slots=slots).run(program(), optimizer="sgd")
        check_same(runner(num_slots=slots).run(program(), optimizer="sgd", kill=38), whole)


@pytest.mark.parametrize(
    ("data", "kill"),
    [("dataset", 38), ("repeated", 38), ("shuffled arrays", 38), ("sequence", 38), ("sequence", 34)],
)
def test_tf_keras(runner, data, kill):
    options = {"env": {"TF_USE_LEGACY_KERAS": "1"}}
    whole = runner(**options).run(program(), data=data)
    check_same(runner(**options).run(program(), data=data, kill=kill), whole)


@pytest.mark.parametrize("legacy", ["0", "1"])
def test_a_failure_during_evaluation(runner, legacy):
    """The failure comes after an epoch's last step, at which a checkpoint was due, and before the epoch ends."""
    options = {"env": {"TF_USE_LEGACY_KERAS": legacy}}
    whole = runner(**options).run(program(), special="evaluation", data="shuffled arrays")
    interrupted = runner(**options)
    check_same(interrupted.run(program(), special="evaluation", data="shuffled arrays", kill="evaluation"), whole)
    (position,) = interrupted.report.attempts[1].resumed
    assert (position["epoch"], position["step"]) == (1, 12)


@pytest.mark.parametrize("legacy", ["0", "1"])
@pytest.mark.parametrize("special", ["moving statistics", "mixed_float16", "own optimizers"])
def test_state_other_than_the_weights(runner, special, legacy):
    options = {"env": {"TF_USE_LEGACY_KERAS": legacy}}
    whole = runner(**options).run(program(), special=special)
    check_same(runner(**options).run(program(), special=special, kill=38), whole)


@pytest.mark.parametrize("legacy", ["0", "1"])
def test_what_is_saved_leaves_each_ranks_state_as_it_is(runner, legacy, tmp_path):
    """The layer computes its outputs from a state that each rank has for itself until the end of an epoch."""
    options = {"env": {"TF_USE_LEGACY_KERAS": legacy}}
    whole = runner(max_restarts=0, **options).run(program(), special="moving centre")
    saves = {"callbacks": ["saves"], "log": str(tmp_path / "saved")}
    check_same(runner(**options).run(program(), special="moving centre", kill=38, **saves), whole)


@pytest.mark.parametrize("kill", [70, 90])
def test_a_second_fit_in_the_function(runner, kill):
    """The first fit does not train again, and the second one starts from its result."""
    whole = runner().run(program(), again=True)
    interrupted = runner()
    check_same(interrupted.run(program(), again=True, kill=kill), whole)
    positions = interrupted.report.attempts[1].resumed
    assert [position["fit"] for position in positions] == [0, 1]
    assert positions[0]["epoch"] == 4


def test_callbacks_keep_their_state(runner, tmp_path):
    wanted = ["early", "plateau", "csv"]
    whole = runner().run(program(), epochs=9, callbacks=wanted, log=str(tmp_path / "whole.csv"))
    interrupted = runner().run(program(), epochs=9, callbacks=wanted, log=str(tmp_path / "log.csv"), kill=41)
    check_same(interrupted, whole)
    assert len(whole["epochs"][0]) == 4  # stopped early, because of the loss of the first epoch
    assert interrupted["rates"] == whole["rates"][2:]  # the rates of the second attempt
    with open(tmp_path / "log.csv") as mine, open(tmp_path / "whole.csv") as theirs:
        actual, expected = list(csv.DictReader(mine)), list(csv.DictReader(theirs))
    assert len(actual) == len(expected) == 4
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name] == other[name] or abs(float(one[name]) - float(other[name])) < 1e-5, name


def test_the_functions_own_backup_and_restore(runner, tmp_path):
    whole = runner().run(program())
    found = runner().run(program(), callbacks=["backup"], log=str(tmp_path / "backup"), kill=38)
    check_same(found, whole)
    alone = runner(max_restarts=0)
    with pytest.raises(TrainingFailedError):
        alone.run(program(), callbacks=["backup"], log=str(tmp_path / "backup"), kill=38)
    again = alone.run(program(), callbacks=["backup"], log=str(tmp_path / "backup"))
    assert again["epochs"] == [[2, 3]]  # as in Keras: from the last complete epoch


def custom_loop():
    def train(kill=None, wrong=False):
        import os
        import signal

        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        context = get_context()
        weights, start = tf.Variable(tf.zeros(3)), 0
        state = context.latest_checkpoint()
        if state is not None:
            weights.assign(state["weights"])
            start = state["step"]
        for step in range(start, 20):
            if step == kill and context.attempt == 0 and context.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            gradient = tf.distribute.get_strategy().reduce("SUM", tf.constant([1.0, 2.0, 3.0]) * step, axis=None)
            weights.assign_sub(0.1 * gradient)
            if step % 5 == 4:
                saved = {"weights": weights, "step": step + 1, "notes": ("a", None)}
                context.save_checkpoint({**saved, "wrong": object()} if wrong else saved)
                import time

                time.sleep(0.3)
        return np.asarray(weights), start, context.attempt

    return train


@pytest.mark.parametrize("store", ["driver", "folder"])
def test_a_custom_loop(runner, tmp_path, store):
    options = {} if store == "driver" else {"checkpoint_dir": str(tmp_path)}
    weights, start, attempt = runner(**options).run(custom_loop(), kill=12)
    assert (start, attempt) == (10, 1)
    np.testing.assert_allclose(weights, -0.2 * 190 * np.array([1, 2, 3]), rtol=1e-5)
    assert runner(**options).run(custom_loop())[1:] == (0, 0)  # a finished run is not resumed


def test_a_checkpoint_rejects_other_objects(runner):
    with pytest.raises(TrainingFailedError) as caught:
        runner().run(custom_loop(), wrong=True)
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert "state['wrong'] is an object" in str(caught.value)


def test_another_driver_resumes_an_interrupted_run(runner, tmp_path):
    folder = str(tmp_path / "checkpoints")
    whole = runner().run(program())
    with pytest.raises(TrainingFailedError):
        runner(max_restarts=0, checkpoint_dir=folder).run(program(), kill=38)
    second = runner(max_restarts=0, checkpoint_dir=folder)
    found = second.run(program())
    check_same({**found, "attempt": 1}, whole)
    assert second.report.attempts[0].resumed == ({"fit": 0, "epoch": 2, "step": 4, "complete": False},)


def test_files_that_cannot_be_used_do_not_displace_new_checkpoints(runner, tmp_path):
    for number in (7, 8):
        with zipfile.ZipFile(tmp_path / f"stfd-fit0-{number:08d}.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("facts.json", " " * 10_000_000)
    whole = runner().run(program())
    mine = runner(checkpoint_dir=str(tmp_path))
    check_same(mine.run(program(), kill=38), whole)
    assert mine.report.attempts[1].resumed == ({"fit": 0, "epoch": 2, "step": 4, "complete": False},)


def test_checkpoints_of_another_model_are_rejected(runner, tmp_path):
    folder = str(tmp_path / "checkpoints")
    with pytest.raises(TrainingFailedError):
        runner(max_restarts=0, checkpoint_dir=folder).run(program(), kill=38)
    with pytest.raises(TrainingFailedError, match="It belongs to another model") as caught:
        runner(max_restarts=0, checkpoint_dir=folder).run(program(), optimizer="sgd")
    assert isinstance(caught.value.__cause__, CheckpointError)
    assert "remove its files" in str(caught.value)


def test_a_folder_that_hosts_do_not_share_is_an_error(runner, tmp_path):
    """If a checkpoint that the driver knows of is missing, the run fails instead of starting from scratch."""

    def train(folder):
        import os
        import shutil
        import time

        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        model = tf.keras.Sequential([tf.keras.layers.Input((2,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(np.zeros((8, 2)), np.zeros((8, 1)), batch_size=8, epochs=3)
        if get_context().is_chief:
            while any(name.startswith(".") for name in os.listdir(folder)):  # a file that is still being written
                time.sleep(0.05)
            shutil.rmtree(folder)
            os.makedirs(folder)
            raise RuntimeError("lost")

    folder = str(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="checkpoint_dir must be a location that all hosts share"):
        runner(checkpoint_dir=folder).run(train, folder=folder)
