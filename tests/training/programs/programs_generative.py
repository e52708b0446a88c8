"""Autoencoders, VAEs and GANs."""

import numpy as np
from conformance.table import digits, outcome

from .table import falls, program


class Trackers:
    """The metrics of a model with a custom train_step; Keras resets them at the start of each epoch."""

    def track(self, keras, *names):
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}

    @property
    def metrics(self):
        return list(self.trackers.values())

    def logs(self, **values):
        for name, value in values.items():
            self.trackers[name].update_state(value)
        return {name: self.trackers[name].result() for name in values}


def vae(keras, sampling):
    """Return the encoder and decoder of the guide's VAE."""
    import tensorflow as tf

    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    mean, log_var = keras.layers.Dense(2, name="z_mean")(hidden), keras.layers.Dense(2, name="z_log_var")(hidden)
    outputs = [mean, log_var, sampling([mean, log_var])] if sampling else [mean, log_var]
    encoder = keras.Model(inputs, outputs, name="encoder")
    latent = keras.Input((2,))
    hidden = keras.layers.Dense(16, activation="relu")(latent)
    decoder = keras.Model(latent, keras.layers.Dense(64, activation="sigmoid")(hidden), name="decoder")

    class VAE(Trackers, keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder
            self.track(keras, "loss", "reconstruction_loss", "kl_loss")

        def losses_of(self, x, mean, log_var, z):
            reconstruction = self.decoder(z)
            each = keras.losses.binary_crossentropy(x, reconstruction)
            reconstruction_loss = tf.reduce_mean(each) * 64
            kl_loss = -0.5 * (1 + log_var - tf.square(mean) - tf.exp(log_var))
            return reconstruction_loss, tf.reduce_mean(tf.reduce_sum(kl_loss, axis=1))

        def train_step(self, data):
            with tf.GradientTape() as tape:
                if sampling:
                    reconstruction, kl = self.losses_of(data, *self.encoder(data))
                else:
                    x, noise = data
                    mean, log_var = self.encoder(x)
                    reconstruction, kl = self.losses_of(x, mean, log_var, mean + tf.exp(0.5 * log_var) * noise)
                total = reconstruction + kl
            gradients = tape.gradient(total, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            return self.logs(loss=total, reconstruction_loss=reconstruction, kl_loss=kl)

    return VAE()


@program(keras_3_only=True, unequal="the workers draw the same noise for their parts of a batch")
def variational_autoencoder(keras):
    """The guide's VAE: a sampling layer with a seed generator, a custom train_step and no call method."""
    from keras import ops

    class Sampling(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.seed_generator = keras.random.SeedGenerator(1337)

        def call(self, inputs):
            mean, log_var = inputs
            shape = (ops.shape(mean)[0], ops.shape(mean)[1])
            return mean + ops.exp(0.5 * log_var) * keras.random.normal(shape=shape, seed=self.seed_generator)

    x, _ = digits(115)
    model = vae(keras, Sampling())
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    history = model.fit(x, batch_size=32, epochs=4, verbose=0)
    falls(history)
    mean, _, _ = model.encoder.predict(x, verbose=0)
    grid = np.array([[a, b] for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)], "float32")
    drawn = model.decoder.predict(grid, verbose=0)
    return {**outcome(model.decoder, history, mean=mean), "first": model.encoder.get_weights()[0], "drawn": drawn}


@program()
def variational_autoencoder_with_noise_in_the_data(keras):
    """The same VAE, but with the noise in the data set."""
    import tensorflow as tf

    x, _ = digits(115)
    model = vae(keras, None)
    noise = np.random.default_rng(2).normal(size=(115, 2)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, noise)).shuffle(115, seed=6).batch(32)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    history = model.fit(data, epochs=4, verbose=0)
    falls(history)
    mean, log_var = model.encoder.predict(x, batch_size=33, verbose=0)
    one = model.decoder.predict(mean[:1], verbose=0)
    assert one.shape == (1, 64)
    return {**outcome(model.decoder, history, mean=mean, log_var=log_var), "first": model.encoder.get_weights()[0]}


def networks(keras, activation=None):
    """Return a generator and a discriminator."""
    layers = keras.layers
    generator = keras.Sequential(
        [keras.Input((6,)), layers.Dense(16), layers.LeakyReLU(), layers.Dense(64, activation="sigmoid")],
        name="generator",
    )
    discriminator = keras.Sequential(
        [keras.Input((64,)), layers.Dense(16), layers.LeakyReLU(), layers.Dense(1, activation=activation)],
        name="discriminator",
    )
    return generator, discriminator


@program()
def gradient_penalty(keras):
    """WGAN-GP: two optimizers, several critic steps, and a tape within a tape."""
    import tensorflow as tf

    class WGAN(Trackers, keras.Model):
        def __init__(self):
            super().__init__()
            self.generator, self.critic = networks(keras)
            self.track(keras, "d_loss", "g_loss")

        def compile(self, d_optimizer, g_optimizer):
            super().compile()
            self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

        def penalty(self, real, fake, mix):
            interpolated = real + mix * (fake - real)
            with tf.GradientTape() as tape:
                tape.watch(interpolated)
                predicted = self.critic(interpolated, training=True)
            gradients = tape.gradient(predicted, [interpolated])[0]
            norm = tf.sqrt(tf.reduce_sum(tf.square(gradients), axis=1) + 1e-12)
            return tf.reduce_mean((norm - 1.0) ** 2)

        def train_step(self, data):
            real, noise, mix = data
            for i in range(2):
                with tf.GradientTape() as tape:
                    fake = self.generator(noise[:, i], training=True)
                    costs = tf.reduce_mean(self.critic(fake)) - tf.reduce_mean(self.critic(real))
                    d_loss = costs + 10.0 * self.penalty(real, fake, mix)
                gradients = tape.gradient(d_loss, self.critic.trainable_variables)
                self.d_optimizer.apply_gradients(zip(gradients, self.critic.trainable_variables, strict=True))
            with tf.GradientTape() as tape:
                g_loss = -tf.reduce_mean(self.critic(self.generator(noise[:, 2], training=True)))
            gradients = tape.gradient(g_loss, self.generator.trainable_variables)
            self.g_optimizer.apply_gradients(zip(gradients, self.generator.trainable_variables, strict=True))
            return self.logs(d_loss=d_loss, g_loss=g_loss)

    x, _ = digits(115)
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(115, 3, 6)).astype("float32")
    mix = rng.uniform(size=(115, 1)).astype("float32")
    model = WGAN()
    model.compile(keras.optimizers.Adam(2e-3, beta_1=0.5), keras.optimizers.Adam(2e-3, beta_1=0.5))
    data = tf.data.Dataset.from_tensor_slices((x, noise, mix)).batch(32)
    history = model.fit(data, epochs=3, verbose=0)
    falls(history, "d_loss")
    drawn = model.generator.predict(noise[:7, 0], verbose=0)
    return {**outcome(model.generator, history, drawn=drawn), "critic": model.critic.get_weights()[0]}


@program(keras_3_only=True, unequal="the workers draw the same noise for their parts of a batch")
def gan(keras):
    """The guide's GAN, which draws its noise in train_step."""
    import tensorflow as tf
    from keras import ops

    class GAN(Trackers, keras.Model):
        def __init__(self):
            super().__init__()
            self.generator, self.discriminator = networks(keras)
            self.seed_generator = keras.random.SeedGenerator(1337)
            self.track(keras, "d_loss", "g_loss")

        def compile(self, d_optimizer, g_optimizer, loss_fn):
            super().compile()
            self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

        def train_step(self, real):
            rows = ops.shape(real)[0]
            noise = keras.random.normal(shape=(rows, 6), seed=self.seed_generator)
            combined = ops.concatenate([self.generator(noise), real], axis=0)
            labels = ops.concatenate([ops.ones((rows, 1)), ops.zeros((rows, 1))], axis=0)
            labels += 0.05 * tf.random.uniform(tf.shape(labels), seed=3)
            with tf.GradientTape() as tape:
                d_loss = self.loss_fn(labels, self.discriminator(combined))
            gradients = tape.gradient(d_loss, self.discriminator.trainable_weights)
            self.d_optimizer.apply_gradients(zip(gradients, self.discriminator.trainable_weights, strict=True))
            noise = keras.random.normal(shape=(rows, 6), seed=self.seed_generator)
            with tf.GradientTape() as tape:
                g_loss = self.loss_fn(ops.zeros((rows, 1)), self.discriminator(self.generator(noise)))
            gradients = tape.gradient(g_loss, self.generator.trainable_weights)
            self.g_optimizer.apply_gradients(zip(gradients, self.generator.trainable_weights, strict=True))
            return self.logs(d_loss=d_loss, g_loss=g_loss)

    x, _ = digits(115)
    model = GAN()
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), keras.optimizers.Adam(3e-4), loss)
    history = model.fit(x, batch_size=32, epochs=4, verbose=0)
    falls(history, "d_loss")
    latent = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    return {**outcome(model.generator, history), "drawn": model.generator.predict(latent, verbose=0)}


@program()
def gan_on_batches(keras):
    """The older way to train a GAN: two compiled models, one inside the other, and a loop of train_on_batch."""
    x, _ = digits(101)
    generator, discriminator = networks(keras, "sigmoid")
    discriminator.compile(keras.optimizers.Adam(2e-3, 0.5), "binary_crossentropy", metrics=["accuracy"])
    latent = keras.Input((6,))
    frozen = keras.models.clone_model(discriminator)
    frozen.set_weights(discriminator.get_weights())
    frozen.trainable = False
    combined = keras.Model(latent, frozen(generator(latent)))
    combined.compile(keras.optimizers.Adam(2e-3, 0.5), "binary_crossentropy")
    rng = np.random.default_rng(11)
    d_losses, g_losses = [], []
    for _ in range(3):
        order = rng.permutation(len(x))
        for start in range(0, len(x), 32):
            real = x[order[start : start + 32]]
            noise = rng.normal(size=(len(real), 6)).astype("float32")
            fake = generator.predict_on_batch(noise)
            assert fake.shape == real.shape
            ones, zeros = np.full((len(real), 1), 0.9, "float32"), np.zeros((len(real), 1), "float32")
            real_loss, _ = discriminator.train_on_batch(real, ones)
            fake_loss, _ = discriminator.train_on_batch(fake, zeros)
            frozen.set_weights(discriminator.get_weights())
            d_losses.append((float(real_loss) + float(fake_loss)) / 2)
            g_losses.append(float(combined.train_on_batch(noise, ones)))
    drawn = generator.predict(rng.normal(size=(5, 6)).astype("float32"), verbose=0)
    return outcome(generator, d_losses=d_losses, g_losses=g_losses, drawn=drawn, first=discriminator.get_weights()[0])


@program()
def denoising_autoencoder(keras):
    """A loop of train_on_batch, test_on_batch and predict_on_batch, with early stopping by hand."""
    x, _ = digits(110)
    x, valid = x[:83], x[83:]
    rng = np.random.default_rng(1)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(20, activation="tanh"),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(20, activation="tanh"),
            keras.layers.Dense(64, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"])
    best, losses = np.inf, []
    for _ in range(4):
        for start in range(0, len(x), 16):
            clean = x[start : start + 16]
            noisy = np.clip(clean + rng.normal(0, 0.2, clean.shape), 0, 1).astype("float32")
            logs = model.train_on_batch(noisy, clean, return_dict=True)
            assert set(logs) == {"loss", "mae"}
            losses.append(float(logs["loss"]))
        tested = model.test_on_batch(valid, valid)
        assert len(tested) == 2
        if float(tested[0]) >= best:
            break
        best = float(tested[0])
        model.reset_metrics()
    assert losses[-1] < losses[0]
    restored = model.predict_on_batch(valid)
    assert restored.shape == valid.shape
    one = model.predict_on_batch(valid[:1])
    assert one.shape == (1, 64)
    return outcome(model, losses=losses, best=best, restored=restored, one=one)
