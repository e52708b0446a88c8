"""Custom training loops, with and without a strategy, as in TensorFlow's guides."""

import numpy as np
from conformance.table import digits, outcome

from .table import program

GLOBAL_BATCH = 48
ROWS = 325


def network(keras, outputs=10):
    """Return a small network that computes logits."""
    return keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(outputs)]
    )


@program()
def plain_loop(keras):
    """Keras' guide to loops from scratch: a tape over the batches of a dataset, metrics, a validation loop."""
    import tensorflow as tf

    x, y = digits(ROWS + 90)
    train = tf.data.Dataset.from_tensor_slices((x[:ROWS], y[:ROWS])).shuffle(1024, seed=1).batch(GLOBAL_BATCH)
    valid = tf.data.Dataset.from_tensor_slices((x[ROWS:], y[ROWS:])).batch(GLOBAL_BATCH)
    model = network(keras)
    optimizer = keras.optimizers.Adam(learning_rate=0.01)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    train_accuracy = keras.metrics.SparseCategoricalAccuracy()
    valid_accuracy = keras.metrics.SparseCategoricalAccuracy()

    @tf.function
    def train_step(x, y):
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss_value = loss_fn(y, logits)
        grads = tape.gradient(loss_value, model.trainable_weights)
        optimizer.apply_gradients(zip(grads, model.trainable_weights, strict=True))
        train_accuracy.update_state(y, logits)
        return loss_value

    @tf.function
    def test_step(x, y):
        valid_accuracy.update_state(y, model(x, training=False))

    losses, accuracies = [], []
    for _ in range(3):
        for x_batch, y_batch in train:
            losses.append(float(train_step(x_batch, y_batch)))
        for x_batch, y_batch in valid:
            test_step(x_batch, y_batch)
        accuracies.append([float(train_accuracy.result()), float(valid_accuracy.result())])
        train_accuracy.reset_state()
        valid_accuracy.reset_state()
    return outcome(model, losses=losses, accuracies=accuracies)


@program()
def eager_loop_over_arrays(keras):
    """Batches are slices of arrays, steps run eagerly, gradients are clipped and weights decay by hand."""
    import tensorflow as tf

    x, y = digits(200)
    model, optimizer = network(keras), keras.optimizers.SGD(0.1, momentum=0.9)
    order, losses = np.random.default_rng(2).permutation(len(x)), []
    for epoch in range(3):
        optimizer.learning_rate = 0.1 / (1 + epoch)
        for start in range(0, len(x), 37):
            rows = order[start : start + 37]
            with tf.GradientTape() as tape:
                logits = model(x[rows], training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y[rows], logits))
                loss += 1e-3 * sum(tf.nn.l2_loss(v) for v in model.trainable_variables if "bias" not in v.name)
            gradients = tape.gradient(loss, model.trainable_variables)
            gradients, norm = tf.clip_by_global_norm(gradients, 1.0)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            losses.append([float(loss), float(norm)])
    logits = model.predict(x, batch_size=64, verbose=0)
    return outcome(model, losses=losses, accuracy=np.mean(np.argmax(logits, axis=1) == y))


@program()
def distributed_guide(keras):
    """TensorFlow's tutorial on custom training with tf.distribute: run, reduce, metrics within the replica."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    x, y = digits(ROWS + 100)
    train = tf.data.Dataset.from_tensor_slices((x[:ROWS], y[:ROWS])).shuffle(ROWS, seed=6).batch(GLOBAL_BATCH)
    test = tf.data.Dataset.from_tensor_slices((x[ROWS:], y[ROWS:])).batch(GLOBAL_BATCH)
    train_dist = strategy.experimental_distribute_dataset(train)
    test_dist = strategy.experimental_distribute_dataset(test)

    with strategy.scope():
        loss_object = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
        test_loss = keras.metrics.Mean(name="test_loss")
        train_accuracy = keras.metrics.SparseCategoricalAccuracy(name="train_accuracy")
        test_accuracy = keras.metrics.SparseCategoricalAccuracy(name="test_accuracy")
        model = network(keras)
        optimizer = keras.optimizers.Adam(learning_rate=0.01)

    def compute_loss(labels, predictions):
        return tf.nn.compute_average_loss(loss_object(labels, predictions), global_batch_size=GLOBAL_BATCH)

    def train_step(inputs):
        images, labels = inputs
        with tf.GradientTape() as tape:
            predictions = model(images, training=True)
            loss = compute_loss(labels, predictions)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        train_accuracy.update_state(labels, predictions)
        return loss

    def test_step(inputs):
        images, labels = inputs
        predictions = model(images, training=False)
        test_loss.update_state(loss_object(labels, predictions))
        test_accuracy.update_state(labels, predictions)

    @tf.function
    def distributed_train_step(inputs):
        per_replica_losses = strategy.run(train_step, args=(inputs,))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica_losses, axis=None)

    @tf.function
    def distributed_test_step(inputs):
        return strategy.run(test_step, args=(inputs,))

    logs = []
    for _ in range(3):
        total, batches = 0.0, 0
        for inputs in train_dist:
            total += distributed_train_step(inputs)
            batches += 1
        for inputs in test_dist:
            distributed_test_step(inputs)
        results = [metric.result() for metric in (train_accuracy, test_loss, test_accuracy)]
        logs.append([float(total) / batches, *map(float, results)])
        for metric in (test_loss, train_accuracy, test_accuracy):
            metric.reset_state()
    return outcome(model, logs=logs)


@program()
def pipelines_of_each_worker(keras):
    """Each input pipeline reads its own rows; a whole epoch of steps runs inside one ``tf.function``."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    x, y = digits(ROWS)

    def pipeline(context):
        per_replica = context.get_per_replica_batch_size(GLOBAL_BATCH)
        data = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
        data = data.shard(context.num_input_pipelines, context.input_pipeline_id)
        return data.batch(per_replica).prefetch(2)

    with strategy.scope():
        model = network(keras)
        optimizer = keras.optimizers.RMSprop(learning_rate=0.003)
        training_loss = keras.metrics.Mean("training_loss", dtype="float32")
        training_accuracy = keras.metrics.SparseCategoricalAccuracy("training_accuracy")
        optimizer.build(model.trainable_variables)

    def step_fn(inputs):
        images, labels = inputs
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.nn.compute_average_loss(losses, global_batch_size=GLOBAL_BATCH)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        training_loss.update_state(losses)
        training_accuracy.update_state(labels, logits)

    @tf.function
    def train_multiple_steps(iterator, steps):
        for _ in tf.range(steps):
            strategy.run(step_fn, args=(next(iterator),))

    data = strategy.distribute_datasets_from_function(pipeline)
    iterator = iter(data)
    logs = []
    for _ in range(3):
        train_multiple_steps(iterator, tf.constant(7))
        logs.append([float(training_loss.result()), float(training_accuracy.result())])
        training_loss.reset_state()
        training_accuracy.reset_state()
    return outcome(model, logs=logs, steps=int(optimizer.iterations))


@program()
def accumulation_by_hand(keras):
    """Gradients of four steps are added up in variables of each replica before the optimizer applies them."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    x, y = digits(ROWS)
    every = 4
    data = tf.data.Dataset.from_tensor_slices((x, y)).repeat(4).batch(GLOBAL_BATCH, drop_remainder=True)
    data = strategy.experimental_distribute_dataset(data)
    with strategy.scope():
        model, optimizer = network(keras), keras.optimizers.SGD(0.3, momentum=0.9)
        optimizer.build(model.trainable_variables)
        sums = [
            tf.Variable(
                tf.zeros(variable.shape),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.SUM,
            )
            for variable in model.trainable_variables
        ]

    def accumulate(inputs):
        images, labels = inputs
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
            loss = tf.nn.compute_average_loss(losses, global_batch_size=GLOBAL_BATCH * every)
        for total, gradient in zip(sums, tape.gradient(loss, model.trainable_variables), strict=True):
            total.assign_add(gradient)
        return loss

    def apply():
        optimizer.apply_gradients(
            [(tf.identity(total), v) for total, v in zip(sums, model.trainable_variables, strict=True)]
        )
        for total in sums:
            total.assign(tf.zeros_like(total))

    @tf.function
    def accumulate_step(inputs):
        return strategy.reduce("SUM", strategy.run(accumulate, args=(inputs,)), axis=None)

    @tf.function
    def apply_step():
        strategy.run(apply)

    losses = []
    for number, inputs in enumerate(data, start=1):
        losses.append(float(accumulate_step(inputs)) * every)
        if number % every == 0:
            apply_step()
    return outcome(model, losses=losses, applied=int(optimizer.iterations))
