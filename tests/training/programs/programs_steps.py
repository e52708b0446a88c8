"""Custom losses and training steps."""

import numpy as np
from conformance.table import digits, outcome

from .table import falls, program


def mlp(keras, outputs=10, activation=None, width=14):
    """Return a classifier that is not compiled."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(width, activation="tanh"),
            keras.layers.Dense(outputs, activation=activation),
        ]
    )


def parts():
    """Return training and validation arrays."""
    x, y = digits(160)
    return (x[:117], y[:117]), (x[117:], y[117:])


@program()
def scalar_loss(keras):
    """Kaggle's Huber loss, a function that returns one number for the batch."""
    import tensorflow as tf

    def huber(y_true, y_pred):
        error = tf.reshape(tf.cast(y_true, tf.float32), [-1]) - y_pred[:, 0]
        small = tf.abs(error) < 1.0
        return tf.reduce_mean(tf.where(small, 0.5 * tf.square(error), tf.abs(error) - 0.5))

    train, valid = parts()
    model = mlp(keras, outputs=1)
    model.compile(keras.optimizers.Adam(0.02), loss=huber, metrics=["mae"])
    history = model.fit(*train, batch_size=32, epochs=4, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model, history, predicted=model.predict(valid[0], verbose=0))


@program(unequal="the root of a mean over a batch is not a mean over its rows")
def root_of_a_mean_as_loss(keras):
    """Kaggle's RMSE as the loss and as a metric function."""
    import tensorflow as tf

    def rmse(y_true, y_pred):
        return tf.sqrt(tf.reduce_mean(tf.square(tf.reshape(tf.cast(y_true, tf.float32), [-1]) - y_pred[:, 0])))

    train, valid = parts()
    model = mlp(keras, outputs=1)
    model.compile(keras.optimizers.Adam(0.02), loss=rmse, metrics=[rmse])
    history = model.fit(*train, batch_size=32, epochs=4, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model, history, predicted=model.predict(valid[0], verbose=0))


def distiller(keras, teacher, student, step):
    """Return the guide's model for knowledge distillation, with a custom train_step or compute_loss."""
    import tensorflow as tf

    class Distiller(keras.Model):
        def __init__(self):
            super().__init__()
            self.teacher, self.student = teacher, student

        def compile(self, optimizer, metrics, student_loss_fn, distillation_loss_fn, alpha=0.1, temperature=3):
            super().compile(optimizer=optimizer, metrics=metrics)
            self.student_loss_fn, self.distillation_loss_fn = student_loss_fn, distillation_loss_fn
            self.alpha, self.temperature = alpha, temperature

        def mixed(self, x, y, predicted):
            soft = tf.nn.softmax(self.teacher(x, training=False) / self.temperature)
            distilled = self.distillation_loss_fn(soft, tf.nn.softmax(predicted / self.temperature))
            return self.alpha * self.student_loss_fn(y, predicted) + (1 - self.alpha) * distilled * self.temperature**2

        def call(self, inputs):
            return self.student(inputs)

    class WithLoss(Distiller):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
            return self.mixed(x, y, y_pred)

    class WithStep(Distiller):
        def __init__(self):
            super().__init__()
            self.loss_tracker = keras.metrics.Mean(name="distillation")
            self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

        @property
        def metrics(self):
            return [self.loss_tracker, self.accuracy]

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                predicted = self.student(x, training=True)
                loss = self.mixed(x, y, predicted)
            gradients = tape.gradient(loss, self.student.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.student.trainable_variables, strict=True))
            self.loss_tracker.update_state(loss)
            self.accuracy.update_state(y, predicted)
            return {metric.name: metric.result() for metric in self.metrics}

        def test_step(self, data):
            x, y = data
            predicted = self.student(x, training=False)
            self.loss_tracker.update_state(tf.reduce_mean(self.student_loss_fn(y, predicted)))
            self.accuracy.update_state(y, predicted)
            return {metric.name: metric.result() for metric in self.metrics}

    return WithStep() if step else WithLoss()


def distill(keras, step):
    (x, y), valid = parts()
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher, student = mlp(keras, width=24), mlp(keras, width=5)
    teacher.compile(keras.optimizers.Adam(0.01), logits, metrics=["accuracy"])
    taught = teacher.fit(x, y, batch_size=32, epochs=3, verbose=0)
    falls(taught)
    model = distiller(keras, teacher, student, step)
    metrics = [] if step else [keras.metrics.SparseCategoricalAccuracy()]
    model.compile(keras.optimizers.Adam(0.02), metrics, logits, keras.losses.KLDivergence())
    history = model.fit(x, y, batch_size=32, epochs=4, validation_data=valid, verbose=0)
    falls(history, "distillation" if step else "loss")
    return outcome(student, history, taught=taught.history["loss"], evaluated=model.evaluate(*valid, verbose=0))


@program(keras_3_only=True)
def distillation(keras):
    """The current guide's distillation, with a custom compute_loss."""
    return distill(keras, step=False)


@program()
def distillation_with_a_step(keras):
    """An earlier guide's distillation, with a custom train_step and test_step."""
    return distill(keras, step=True)


@program()
def mean_in_train_step(keras):
    """The guide on fit at its lowest level: tf.reduce_mean, custom trackers, clipping in the step, a schedule."""
    import tensorflow as tf

    class Classifier(keras.Model):
        def __init__(self):
            super().__init__()
            self.network = mlp(keras)
            self.loss_tracker = keras.metrics.Mean(name="loss")
            self.norm_tracker = keras.metrics.Mean(name="norm")
            self.correct = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

        def call(self, x):
            return self.network(x)

        @property
        def metrics(self):
            return [self.loss_tracker, self.norm_tracker, self.correct]

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                logits = self(x, training=True)
                each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, tf.int32), logits)
                loss = tf.reduce_mean(each)
                decay = tf.add_n([tf.nn.l2_loss(v) for v in self.trainable_variables if len(v.shape) > 1])
                total = loss + 1e-3 * decay
            gradients = tape.gradient(total, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            self.loss_tracker.update_state(loss)
            self.norm_tracker.update_state(decay)
            self.correct.update_state(y, logits)
            return {metric.name: metric.result() for metric in self.metrics}

        def test_step(self, data):
            x, y = data
            logits = self(x, training=False)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, tf.int32), logits))
            self.loss_tracker.update_state(loss)
            self.correct.update_state(y, logits)
            return {"loss": self.loss_tracker.result(), "accuracy": self.correct.result()}

    train, valid = parts()
    schedule = keras.optimizers.schedules.CosineDecay(0.02, decay_steps=16)
    model = Classifier()
    model.compile(optimizer=keras.optimizers.Adam(schedule, global_clipnorm=0.5))
    history = model.fit(*train, batch_size=32, epochs=4, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model.network, history, evaluated=model.evaluate(*valid, batch_size=10, verbose=0))


@program()
def compute_loss_with_a_term(keras):
    """``super().compute_loss(...)`` and custom terms: an orthogonality penalty and a mean of the outputs."""
    import tensorflow as tf

    class Orthogonal(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, **kwargs):
            loss = super().compute_loss(x, y, y_pred, sample_weight, **kwargs)
            kernel = self.get_layer("features").trainable_variables[0]
            gram = tf.matmul(kernel, kernel, transpose_a=True)
            penalty = tf.reduce_mean(tf.square(gram - tf.eye(14)))
            return loss + 0.1 * penalty + 0.01 * tf.reduce_mean(tf.square(y_pred))

    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(14, activation="tanh", name="features")(inputs)
    model = Orthogonal(inputs, keras.layers.Dense(10)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.2, momentum=0.9), loss, metrics=["accuracy"])
    train, valid = parts()
    history = model.fit(*train, batch_size=32, epochs=4, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model, history, evaluated=model.evaluate(*valid, verbose=0))


@program()
def logistic_endpoint(keras):
    """The guide's endpoint layer: the labels are an input, and the layer adds a keras.losses object's loss."""

    class LogisticEndpoint(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.loss_fn = keras.losses.BinaryCrossentropy(from_logits=True)

        def call(self, logits, targets=None):
            if targets is not None:
                self.add_loss(self.loss_fn(targets, logits))
            return keras.activations.sigmoid(logits)

    (x, y), (valid, _) = parts()
    targets = (y % 2).astype("float32")[:, None]
    inputs, labels = keras.Input((64,), name="inputs"), keras.Input((1,), name="targets")
    logits = keras.layers.Dense(1)(keras.layers.Dense(12, activation="tanh")(inputs))
    model = keras.Model({"inputs": inputs, "targets": labels}, LogisticEndpoint(name="predictions")(logits, labels))
    model.compile(optimizer=keras.optimizers.Adam(0.02))
    history = model.fit({"inputs": x, "targets": targets}, batch_size=32, epochs=3, validation_split=0.2, verbose=0)
    falls(history)
    predictor = keras.Model(inputs, keras.layers.Activation("sigmoid")(logits))
    return outcome(model, history, predicted=predictor.predict(valid, verbose=0))


@program(keras_3_only=True)
def vector_in_add_loss(keras):
    """A sparsity penalty per row is passed to add_loss as a vector, which Keras 3 sums and tf_keras rejects."""
    import tensorflow as tf

    class RowPenalty(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(1e-3 * tf.reduce_sum(tf.abs(inputs), axis=1))
            return inputs

    (x, y), valid = parts()
    inputs = keras.Input((64,))
    hidden = RowPenalty()(keras.layers.Dense(14, activation="tanh")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(hidden))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, y, batch_size=32, epochs=4, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model, history, evaluated=model.evaluate(*valid, batch_size=20, verbose=0))


@program()
def focal_loss_class(keras):
    """A custom loss class and a custom metric class, a compiled model with several metrics, and class weights."""
    import tensorflow as tf

    class Focal(keras.losses.Loss):
        def __init__(self, gamma=2.0, name="focal"):
            super().__init__(name=name)
            self.gamma = gamma

        def call(self, y_true, y_pred):
            y_true = tf.one_hot(tf.cast(tf.reshape(y_true, (-1,)), tf.int32), 10)
            right = tf.clip_by_value(tf.reduce_sum(y_true * y_pred, axis=-1), 1e-7, 1.0)
            return -tf.pow(1.0 - right, self.gamma) * tf.math.log(right)

    class Hits(keras.metrics.Metric):
        def __init__(self, name="hits", **kwargs):
            super().__init__(name=name, **kwargs)
            self.hits = self.add_weight(shape=(), initializer="zeros", name="hits")

        def update_state(self, y_true, y_pred, sample_weight=None):
            right = tf.equal(tf.cast(tf.reshape(y_true, (-1,)), tf.int64), tf.argmax(y_pred, axis=1))
            self.hits.assign_add(tf.reduce_sum(tf.cast(right, tf.float32)))

        def result(self):
            return tf.identity(self.hits)  # otherwise Keras logs the variable itself, whose value then changes

        def reset_state(self):
            self.hits.assign(0.0)

    train, valid = parts()
    model = mlp(keras, activation="softmax")
    top = keras.metrics.SparseTopKCategoricalAccuracy(3, name="top3")
    model.compile(keras.optimizers.Adam(0.01), Focal(), metrics=["accuracy", top, Hits()])
    weights = {label: 1.0 + (label == 8) for label in range(10)}
    history = model.fit(*train, batch_size=32, epochs=3, class_weight=weights, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model, history, evaluated=model.evaluate(*valid, verbose=0))


@program()
def supervised_contrastive(keras):
    """Two stages: a step's scalar loss pairs rows with views of themselves; then a linear probe is trained."""
    import tensorflow as tf

    class Pairs(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = mlp(keras, outputs=6)
            self.tracker = keras.metrics.Mean(name="loss")

        @property
        def metrics(self):
            return [self.tracker]

        def train_step(self, data):
            (left, right), same = data
            with tf.GradientTape() as tape:
                a = tf.math.l2_normalize(self.encoder(left, training=True), axis=1)
                b = tf.math.l2_normalize(self.encoder(right, training=True), axis=1)
                cosine = tf.reduce_sum(a * b, axis=1)
                apart = tf.nn.relu(cosine - 0.2)
                loss = tf.reduce_mean(same * (1 - cosine) + (1 - same) * apart)
            gradients = tape.gradient(loss, self.encoder.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.encoder.trainable_variables, strict=True))
            self.tracker.update_state(loss)
            return {"loss": self.tracker.result()}

    (x, y), valid = parts()
    order = np.random.default_rng(3).permutation(len(x))
    same = (y == y[order]).astype("float32")
    model = Pairs()
    model.compile(keras.optimizers.Adam(0.01))
    data = tf.data.Dataset.from_tensor_slices(((x, x[order]), same)).batch(32)
    history = model.fit(data, epochs=3, verbose=0)
    falls(history)
    model.encoder.trainable = False
    probe = keras.Sequential([keras.Input((64,)), model.encoder, keras.layers.Dense(10, activation="softmax")])
    probe.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    probed = probe.fit(x, y, batch_size=32, epochs=3, validation_data=valid, verbose=0)
    falls(probed)
    return outcome(probe, history, probed=probed.history["val_loss"])
