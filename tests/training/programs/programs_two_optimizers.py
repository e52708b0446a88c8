"""Loops with two optimizers: wide and deep parts, a generator with its critic, an actor with its critic."""

import numpy as np
from conformance.table import digits, outcome

from .table import program


@program()
def wide_part_and_deep_part(keras):
    """One tape, two optimizers for two groups of variables, in the replicas of a strategy."""
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    x, y = digits(310)
    size = 42
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(310, seed=13).batch(size)
    data = strategy.experimental_distribute_dataset(data)
    with strategy.scope():
        wide = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, kernel_initializer="zeros")])
        deep = keras.Sequential([keras.Input((64,)), keras.layers.Dense(12, activation="tanh"), keras.layers.Dense(10)])
        slow, fast = keras.optimizers.Ftrl(0.1), keras.optimizers.Adagrad(0.1)
        loss_metric = keras.metrics.Mean()
        accuracy = keras.metrics.SparseCategoricalAccuracy()

    def step(images, labels):
        with tf.GradientTape() as tape:
            logits = wide(images, training=True) + deep(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.nn.compute_average_loss(losses, global_batch_size=size)
        first, second = tape.gradient(loss, [wide.trainable_variables, deep.trainable_variables])
        slow.apply_gradients(zip(first, wide.trainable_variables, strict=True))
        fast.apply_gradients(zip(second, deep.trainable_variables, strict=True))
        loss_metric.update_state(losses)
        accuracy.update_state(labels, logits)
        return loss

    @tf.function
    def train_step(inputs):
        return strategy.reduce("SUM", strategy.run(step, args=inputs), axis=None)

    logs = []
    for _ in range(4):
        losses = [float(train_step(inputs)) for inputs in data]
        logs.append([np.mean(losses), float(loss_metric.result()), float(accuracy.result())])
        loss_metric.reset_state()
        accuracy.reset_state()
    deep_weights = {f"deep {i}": weight for i, weight in enumerate(deep.get_weights())}
    return outcome(wide, logs=logs, steps=[int(slow.iterations), int(fast.iterations)], **deep_weights)


@program()
def gan_in_a_loop(keras):
    """A plain loop: the critic and the generator each have a tape and an optimizer; noise is seeded."""
    import tensorflow as tf

    x, _ = digits(230)
    data = tf.data.Dataset.from_tensor_slices(x).shuffle(230, seed=3).batch(40)
    noise_width, noise = 6, tf.random.Generator.from_seed(99)
    generator = keras.Sequential(
        [
            keras.Input((noise_width,)),
            keras.layers.Dense(20),
            keras.layers.LeakyReLU(),
            keras.layers.Dense(64, "sigmoid"),
        ]
    )
    critic = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(20), keras.layers.LeakyReLU(), keras.layers.Dense(1)]
    )
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    generator_optimizer, critic_optimizer = keras.optimizers.Adam(2e-3), keras.optimizers.Adam(1e-3)

    @tf.function
    def train_step(images):
        latent = noise.normal((tf.shape(images)[0], noise_width))
        with tf.GradientTape() as generator_tape, tf.GradientTape() as critic_tape:
            made = generator(latent, training=True)
            real, fake = critic(images, training=True), critic(made, training=True)
            generator_loss = cross_entropy(tf.ones_like(fake), fake)
            critic_loss = cross_entropy(tf.ones_like(real) * 0.9, real) + cross_entropy(tf.zeros_like(fake), fake)
        gradients = generator_tape.gradient(generator_loss, generator.trainable_variables)
        generator_optimizer.apply_gradients(zip(gradients, generator.trainable_variables, strict=True))
        gradients = critic_tape.gradient(critic_loss, critic.trainable_variables)
        critic_optimizer.apply_gradients(zip(gradients, critic.trainable_variables, strict=True))
        return generator_loss, critic_loss

    losses = []
    for _ in range(3):
        for images in data:
            losses.append([float(value) for value in train_step(images)])
    made = generator(tf.ones((3, noise_width)), training=False)
    weights = {f"critic {i}": weight for i, weight in enumerate(critic.get_weights())}
    return outcome(generator, losses=losses, made=made, **weights)


@program()
def two_optimizers_in_train_step(keras):
    """A custom ``train_step``: an encoder and a decoder with separate optimizers, and losses tracked by ``Mean``."""
    import tensorflow as tf

    x, _ = digits(340)

    class Autoencoder(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = keras.Sequential([keras.layers.Dense(16, activation="relu"), keras.layers.Dense(6)])
            self.decoder = keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(64, "sigmoid")])
            self.error = keras.metrics.Mean(name="error")
            self.size = keras.metrics.Mean(name="size")

        def compile(self, encoder_optimizer, decoder_optimizer, **kwargs):
            super().compile(**kwargs)
            self.encoder_optimizer, self.decoder_optimizer = encoder_optimizer, decoder_optimizer

        @property
        def metrics(self):
            return [self.error, self.size]

        def call(self, inputs):
            return self.decoder(self.encoder(inputs))

        def train_step(self, data):
            with tf.GradientTape(persistent=True) as tape:
                code = self.encoder(data, training=True)
                error = tf.reduce_mean(tf.square(data - self.decoder(code, training=True)))
                size = tf.reduce_mean(tf.square(code))
                total = error + 0.01 * size
            for part, optimizer in ((self.encoder, self.encoder_optimizer), (self.decoder, self.decoder_optimizer)):
                gradients = tape.gradient(total, part.trainable_variables)
                optimizer.apply_gradients(zip(gradients, part.trainable_variables, strict=True))
            self.error.update_state(error)
            self.size.update_state(size)
            return {"error": self.error.result(), "size": self.size.result()}

        def test_step(self, data):
            self.error.update_state(tf.reduce_mean(tf.square(data - self(data, training=False))))
            return {"error": self.error.result()}

    model = Autoencoder()
    model.compile(keras.optimizers.Adam(0.005), keras.optimizers.RMSprop(0.002))
    history = model.fit(x[:260], batch_size=44, epochs=4, validation_data=(x[260:],), verbose=0)
    # tf_keras counts the metrics' variables among the weights, but each worker has only its own part of them.
    weights = {f"decoder {i}": weight for i, weight in enumerate(model.decoder.get_weights())}
    return outcome(model.encoder, history, again=model.predict(x[:5], verbose=0), **weights)
