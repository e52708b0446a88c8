"""Custom callbacks as people write them: teachers, rate finders, warm-up, averaged weights, reports in training."""

import os

import numpy as np
from conformance.table import digits, outcome

from .table import program

CLASSES = 10


def classifier(keras, optimizer=None, metrics=("accuracy",)):
    """Return a compiled classifier of digits."""
    inputs = keras.Input(shape=(64,))
    hidden = keras.layers.Dense(20, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(hidden))
    model.compile(
        optimizer=optimizer or keras.optimizers.Adam(0.01),
        loss="sparse_categorical_crossentropy",
        metrics=list(metrics),
    )
    return model


def halves(rows, valid):
    """Return digits for training and for validation."""
    x, y = digits(rows + valid)
    return (x[:rows], y[:rows]), (x[rows:], y[rows:])


@program()
def mean_teacher(keras):
    """A teacher is the moving average of the student, updated after each batch and evaluated after each epoch."""
    (x, y), valid = halves(290, 120)

    class MeanTeacher(keras.callbacks.Callback):
        def __init__(self, teacher, decay):
            super().__init__()
            self.teacher, self.decay = teacher, decay

        def on_train_begin(self, logs=None):
            self.teacher.set_weights(self.model.get_weights())

        def on_train_batch_end(self, batch, logs=None):
            pairs = zip(self.teacher.get_weights(), self.model.get_weights(), strict=True)
            self.teacher.set_weights([self.decay * old + (1 - self.decay) * new for old, new in pairs])

        def on_epoch_end(self, epoch, logs=None):
            loss, accuracy = self.teacher.evaluate(*valid, batch_size=50, verbose=0)
            logs["teacher_loss"], logs["teacher_accuracy"] = loss, accuracy

    student, teacher = classifier(keras), classifier(keras)
    history = student.fit(x, y, batch_size=32, epochs=4, callbacks=[MeanTeacher(teacher, 0.9)], verbose=0)
    moved = {f"teacher {i}": weight for i, weight in enumerate(teacher.get_weights())}
    return outcome(student, history, **moved)


@program()
def learning_rate_finder(keras):
    """The rate grows with each batch until the smoothed loss explodes; a tenth of the best rate trains the model."""
    (x, y), valid = halves(325, 100)

    class Finder(keras.callbacks.Callback):
        def __init__(self, low, high, steps):
            super().__init__()
            self.rates = np.geomspace(low, high, steps)
            self.losses, self.smooth, self.best = [], 0.0, np.inf

        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.learning_rate.assign(self.rates[len(self.losses)])

        def on_train_batch_end(self, batch, logs=None):
            self.smooth = 0.7 * self.smooth + 0.3 * float(logs["loss"])
            self.losses.append(self.smooth / (1 - 0.7 ** (len(self.losses) + 1)))
            self.best = min(self.best, self.losses[-1])
            if self.losses[-1] > 1.5 * self.best or len(self.losses) == len(self.rates):
                self.model.stop_training = True

    model = classifier(keras, keras.optimizers.SGD(1e-3))
    start = model.get_weights()
    finder = Finder(1e-2, 50, 30)
    model.fit(x, y, batch_size=48, epochs=6, callbacks=[finder], verbose=0)
    rate = finder.rates[int(np.argmin(finder.losses))] / 10

    model = classifier(keras, keras.optimizers.SGD(rate, momentum=0.9))
    model.set_weights(start)
    history = model.fit(x, y, batch_size=48, epochs=4, validation_data=valid, verbose=0)
    return outcome(model, history, losses=finder.losses, rate=rate)


@program()
def warm_up_by_callback(keras):
    """The callback computes with the optimizer's counter and rate as numbers, and formats them for its log."""
    (x, y), valid = halves(250, 75)
    lines = []

    class WarmUp(keras.callbacks.Callback):
        def __init__(self, target, steps):
            super().__init__()
            self.target, self.steps = target, steps

        def on_train_batch_begin(self, batch, logs=None):
            done = float(self.model.optimizer.iterations)
            if done < self.steps:
                self.model.optimizer.learning_rate = self.target * (done + 1) / self.steps

        def on_epoch_end(self, epoch, logs=None):
            optimizer = self.model.optimizer
            rate = float(optimizer.learning_rate)
            lines.append(f"epoch {epoch}, step {int(optimizer.iterations)}: rate {rate:.5f}")
            lines.append("lr = %.4f" % optimizer.learning_rate)  # noqa: UP031
            logs["lr"] = rate

    model = classifier(keras, keras.optimizers.Adam(learning_rate=1e-5))
    history = model.fit(x, y, batch_size=33, epochs=4, validation_data=valid, callbacks=[WarmUp(0.01, 12)], verbose=0)
    return outcome(model, history, log=np.frombuffer("\n".join(lines).encode(), "uint8"))


@program()
def stochastic_weight_averaging(keras):
    """Weights are averaged from the third epoch on; then batch normalisation sees the data once more."""
    x, y = digits(410)
    x = x.reshape(-1, 8, 8, 1)

    class Averaging(keras.callbacks.Callback):
        def __init__(self, start):
            super().__init__()
            self.start, self.count, self.mean = start, 0, None

        def on_epoch_end(self, epoch, logs=None):
            if epoch < self.start:
                return
            weights = self.model.get_weights()
            if self.mean is None:
                self.mean = weights
            else:
                self.mean = [(m * self.count + w) / (self.count + 1) for m, w in zip(self.mean, weights, strict=True)]
            self.count += 1

        def on_train_end(self, logs=None):
            self.model.set_weights(self.mean)

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, use_bias=False),
            keras.layers.BatchNormalization(momentum=0.8, synchronized=True),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), "sparse_categorical_crossentropy")
    history = model.fit(
        x[:330],
        y[:330],
        batch_size=50,
        epochs=5,
        validation_data=(x[330:], y[330:]),
        callbacks=[Averaging(2)],
        verbose=0,
    )
    averaged = model.evaluate(x[330:], y[330:], batch_size=50, verbose=0)
    model.optimizer.learning_rate = 0.0
    model.fit(x[:330], y[:330], batch_size=50, epochs=1, verbose=0)
    return outcome(model, history, averaged=averaged, after=model.evaluate(x[330:], y[330:], batch_size=50, verbose=0))


@program()
def early_stopping_with_the_best_weights(keras):
    """Too high a rate makes the model worse after some epochs; the best weights are restored."""
    (x, y), valid = halves(220, 140)
    model = classifier(keras, keras.optimizers.RMSprop(0.03))
    stop = keras.callbacks.EarlyStopping(
        monitor="val_accuracy", mode="max", patience=2, restore_best_weights=True, start_from_epoch=1
    )
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.2, patience=1, min_lr=1e-4)
    history = model.fit(x, y, batch_size=42, epochs=9, validation_data=valid, callbacks=[plateau, stop], verbose=0)
    accuracy = model.evaluate(*valid, verbose=0)[1]
    assert abs(accuracy - max(history.history["val_accuracy"][1:])) < 1e-6
    return outcome(model, history, epochs=len(history.epoch), best=stop.best, best_epoch=stop.best_epoch)


@program()
def report_with_predictions(keras):
    """A callback predicts and evaluates during training, at the end of epochs and between batches."""
    from sklearn.metrics import confusion_matrix, f1_score

    (x, y), (x_valid, y_valid) = halves(303, 130)

    class Report(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.scores, self.tables, self.between = [], [], []

        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                probabilities = self.model.predict(x_valid[:7], verbose=0)
                self.between.append(float(probabilities.max(axis=1).mean()))

        def on_epoch_end(self, epoch, logs=None):
            labels = np.argmax(self.model.predict(x_valid, batch_size=64, verbose=0), axis=1)
            score = f1_score(y_valid, labels, average="macro")
            self.scores.append(score)
            self.tables.append(confusion_matrix(y_valid, labels, labels=range(CLASSES)))
            logs["val_f1"] = score
            logs["again"] = self.model.evaluate(x_valid, y_valid, batch_size=41, verbose=0)[0]

    report = Report()
    best = keras.callbacks.EarlyStopping(monitor="val_f1", mode="max", patience=5, restore_best_weights=True)
    model = classifier(keras)
    history = model.fit(
        x, y, batch_size=32, epochs=3, validation_data=(x_valid, y_valid), callbacks=[report, best], verbose=0
    )
    return outcome(model, history, scores=report.scores, tables=report.tables, between=report.between)


@program()
def recall_of_each_class(keras):
    """A metric keeps a vector; another keeps a confusion matrix and gives the mean of its classes."""
    import tensorflow as tf

    class ClassRecall(keras.metrics.Metric):
        def __init__(self, name="recall", **kwargs):
            super().__init__(name=name, **kwargs)
            self.hits = self.add_weight(name="hits", shape=(CLASSES,), initializer="zeros")
            self.rows = self.add_weight(name="rows", shape=(CLASSES,), initializer="zeros")

        def update_state(self, y_true, y_pred, sample_weight=None):
            one_hot = tf.one_hot(tf.cast(tf.reshape(y_true, [-1]), tf.int32), CLASSES)
            found = tf.one_hot(tf.argmax(y_pred, axis=-1), CLASSES)
            self.hits.assign_add(tf.reduce_sum(one_hot * found, axis=0))
            self.rows.assign_add(tf.reduce_sum(one_hot, axis=0))

        def result(self):
            return tf.math.divide_no_nan(self.hits, self.rows)

        def reset_state(self):
            for variable in (self.hits, self.rows):
                variable.assign(tf.zeros_like(variable))

    class BalancedAccuracy(ClassRecall):
        def result(self):
            seen = tf.cast(tf.convert_to_tensor(self.rows) > 0, tf.float32)
            return tf.reduce_sum(super().result()) / tf.reduce_sum(seen)

    (x, y), valid = halves(281, 97)
    recall, balanced = ClassRecall(), BalancedAccuracy(name="balanced")
    model = classifier(keras, metrics=[recall, balanced])
    history = model.fit(x, y, batch_size=40, epochs=3, validation_data=valid, verbose=0)
    evaluated = model.evaluate(*valid, batch_size=40, verbose=0, return_dict=True)
    assert np.shape(evaluated["recall"]) == (CLASSES,)
    return outcome(model, history, recall=evaluated["recall"], balanced=evaluated["balanced"])


@program()
def best_checkpoint_loaded_at_once(keras):
    """All ranks load the best weights directly after ``fit``, without waiting for the rank that writes them."""
    (x, y), valid = halves(260, 99)
    path = os.path.join(os.environ["CONFORMANCE_FOLDER"], "best.weights.h5")
    model = classifier(keras, keras.optimizers.Adam(0.05))
    checkpoint = keras.callbacks.ModelCheckpoint(
        filepath=path, save_weights_only=True, monitor="val_loss", mode="min", save_best_only=True
    )
    history = model.fit(x, y, batch_size=36, epochs=5, validation_data=valid, callbacks=[checkpoint], verbose=0)
    model.load_weights(path)
    loss, accuracy = model.evaluate(*valid, batch_size=50, verbose=0)
    assert abs(loss - min(history.history["val_loss"])) < 1e-3
    return outcome(model, history, loss=loss, accuracy=accuracy)


@program()
def snapshot_ensemble(keras):
    """A rate with warm restarts per batch; the weights at the end of each cycle vote."""
    (x, y), (x_valid, y_valid) = halves(325, 110)
    batch, cycle_epochs, cycles = 50, 2, 3
    steps = -(-len(x) // batch) * cycle_epochs

    class Snapshots(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.step, self.weights, self.rates = 0, [], []

        def on_train_batch_begin(self, batch, logs=None):
            rate = 0.05 * (1 + np.cos(np.pi * (self.step % steps) / steps))
            self.model.optimizer.learning_rate.assign(rate)
            self.rates.append(rate)
            self.step += 1

        def on_epoch_end(self, epoch, logs=None):
            if (epoch + 1) % cycle_epochs == 0:
                self.weights.append(self.model.get_weights())

    snapshots = Snapshots()
    model = classifier(keras, keras.optimizers.SGD(0.1, momentum=0.9))
    history = model.fit(
        x, y, batch_size=batch, epochs=cycle_epochs * cycles, callbacks=[snapshots], shuffle=True, verbose=0
    )
    votes = []
    for weights in snapshots.weights:
        model.set_weights(weights)
        votes.append(model.predict(x_valid, verbose=0))
    mean = np.mean(votes, axis=0)
    accuracy = np.mean(np.argmax(mean, axis=1) == y_valid)
    return outcome(model, history, votes=mean, accuracy=accuracy)
