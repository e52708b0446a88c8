"""Tabular data: mixed columns with lookups and crosses, recommenders, imbalanced classes, folds, several targets."""

import numpy as np
from conformance.table import outcome

from .table import program


def people(rows, seed=11):
    """Return the columns of a small census as a dict of arrays, and whether each person has a high income."""
    random = np.random.default_rng(seed)
    work = np.array(["Private", "Self-employed", "Government", "Never-worked"])
    schooling = np.array(["Bachelors", "HS-grad", "Masters", "11th", "Doctorate"])
    columns = {
        "age": random.integers(17, 80, rows).astype("float32"),
        "hours_per_week": random.normal(40, 9, rows).astype("float32"),
        "workclass": work[random.integers(0, len(work), rows)],
        "education": schooling[random.integers(0, len(schooling), rows)],
        "zip_area": random.integers(100, 130, rows).astype("int64"),
    }
    score = columns["age"] / 40 + columns["hours_per_week"] / 30 + (columns["education"] == "Doctorate") * 2
    score += (columns["workclass"] == "Self-employed") * 0.7 + random.normal(0, 0.3, rows)
    return columns, (score > np.median(score)).astype("float32")


@program()
def census_wide_and_deep(keras):
    """Lookups, a hashed cross and a normalisation are layers of the model, adapted to the training columns."""
    import tensorflow as tf

    layers = keras.layers
    columns, label = people(333)
    train = {name: values[:230] for name, values in columns.items()}
    valid = {name: values[230:] for name, values in columns.items()}

    inputs = {
        "age": keras.Input((1,), name="age"),
        "hours_per_week": keras.Input((1,), name="hours_per_week"),
        "workclass": keras.Input((1,), name="workclass", dtype="string"),
        "education": keras.Input((1,), name="education", dtype="string"),
        "zip_area": keras.Input((1,), name="zip_area", dtype="int64"),
    }
    wide, deep = [], []
    for name in ("age", "hours_per_week"):
        normalization = layers.Normalization(axis=None)
        normalization.adapt(train[name])
        deep.append(normalization(inputs[name]))
    for name in ("workclass", "education"):
        lookup = layers.StringLookup(output_mode="int", num_oov_indices=1)
        lookup.adapt(train[name])
        indices = lookup(inputs[name])
        deep.append(layers.Flatten()(layers.Embedding(lookup.vocabulary_size(), 4)(indices)))
    areas = layers.IntegerLookup(output_mode="int", num_oov_indices=2)
    areas.adapt(train["zip_area"])
    wide.append(layers.Flatten()(layers.Embedding(areas.vocabulary_size(), 1)(areas(inputs["zip_area"]))))
    crossing = layers.HashedCrossing(num_bins=40, output_mode="one_hot")
    wide.append(crossing((inputs["workclass"], inputs["education"])))

    hidden = layers.concatenate(deep)
    for units in (24, 12):
        hidden = layers.Dense(units, activation="relu")(hidden)
    logit = layers.Dense(1)(layers.concatenate([*wide, hidden]))
    model = keras.Model(inputs, logit)
    model.compile(
        optimizer=keras.optimizers.Adam(0.01),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],
    )
    data = tf.data.Dataset.from_tensor_slices((train, label[:230])).batch(32)
    history = model.fit(
        data, epochs=4, validation_data=tf.data.Dataset.from_tensor_slices((valid, label[230:])).batch(32), verbose=0
    )
    new = {"age": 33.0, "hours_per_week": 50.0, "workclass": "Retired", "education": "Masters", "zip_area": 7}
    types = {"zip_area": tf.int64}
    new = {name: tf.constant([[value]], types.get(name)) for name, value in new.items()}
    result = outcome(model, history, chance=model.predict(new, verbose=0))
    # In tf_keras, vocabularies are among the weights, but only numbers can be compared.
    return {name: value for name, value in result.items() if value.dtype.kind in "fi"}


@program()
def census_preprocessed_in_the_pipeline(keras):
    """The lookups are adapted to a dataset and applied in ``map``; columns arrive by name."""
    import tensorflow as tf

    columns, label = people(300, seed=12)
    rows = tf.data.Dataset.from_tensor_slices((columns, label))
    train, valid = rows.take(217), rows.skip(217)

    education = keras.layers.StringLookup(output_mode="one_hot")
    education.adapt(train.batch(64).map(lambda row, _: row["education"]))
    work = keras.layers.StringLookup(output_mode="multi_hot")
    work.adapt(train.batch(64).map(lambda row, _: row["workclass"]))
    scale = keras.layers.Normalization(axis=-1)
    scale.adapt(train.batch(64).map(lambda row, _: tf.stack([row["age"], row["hours_per_week"]], axis=-1)))
    area = keras.layers.Hashing(num_bins=16)

    def encode(row, target):
        numbers = scale(tf.stack([row["age"], row["hours_per_week"]], axis=-1))
        features = {
            "numbers": numbers,
            "categories": tf.concat([education(row["education"]), work(row["workclass"][:, None])], axis=-1),
            "area": area(row["zip_area"]),
        }
        return features, target

    train = train.shuffle(217, seed=5).batch(40).map(encode, num_parallel_calls=tf.data.AUTOTUNE).prefetch(1)
    valid = valid.batch(40).map(encode).cache()

    numbers = keras.Input((2,), name="numbers")
    categories = keras.Input((education.vocabulary_size() + work.vocabulary_size(),), name="categories")
    bucket = keras.Input((), name="area", dtype="int64")
    place = keras.layers.Embedding(16, 3)(bucket)
    hidden = keras.layers.Concatenate()([numbers, categories, place])
    hidden = keras.layers.Dense(16, activation="relu", kernel_regularizer=keras.regularizers.L2(1e-3))(hidden)
    output = keras.layers.Dense(1, activation="sigmoid")(hidden)
    model = keras.Model({"numbers": numbers, "categories": categories, "area": bucket}, output)
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(name="auc")])
    model.optimizer.learning_rate = 0.01
    history = model.fit(train, validation_data=valid, epochs=4, verbose=0)
    return outcome(model, history, evaluated=model.evaluate(valid, verbose=0))


@program()
def movie_recommender(keras):
    """Two towers of embeddings with biases; the score is their dot product, squeezed into the range of ratings."""
    random = np.random.default_rng(5)
    users, movies, rows = 30, 45, 517
    pairs = np.stack([random.integers(0, users, rows), random.integers(0, movies, rows)], axis=1).astype("int32")
    tastes, styles = random.normal(size=(users, 3)), random.normal(size=(movies, 3))
    ratings = 1 / (1 + np.exp(-(tastes[pairs[:, 0]] * styles[pairs[:, 1]]).sum(axis=1)))
    ratings = ratings.astype("float32")[:, None]

    class Recommender(keras.Model):
        def __init__(self, width):
            super().__init__()
            settings = {"embeddings_initializer": "he_normal", "embeddings_regularizer": keras.regularizers.L2(1e-5)}
            self.user = keras.layers.Embedding(users, width, **settings)
            self.user_bias = keras.layers.Embedding(users, 1)
            self.movie = keras.layers.Embedding(movies, width, **settings)
            self.movie_bias = keras.layers.Embedding(movies, 1)
            self.dot = keras.layers.Dot(axes=-1)
            self.squeeze = keras.layers.Activation("sigmoid")

        def call(self, pair):
            user, movie = pair[:, 0], pair[:, 1]
            score = self.dot([self.user(user), self.movie(movie)])
            return self.squeeze(score + self.user_bias(user) + self.movie_bias(movie))

    model = Recommender(8)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=0.02),
        loss=keras.losses.BinaryCrossentropy(),
        metrics=[keras.metrics.RootMeanSquaredError(name="rmse")],
    )
    history = model.fit(
        pairs[:440], ratings[:440], batch_size=64, epochs=4, validation_data=(pairs[440:], ratings[440:]), verbose=0
    )
    seen = set(pairs[pairs[:, 0] == 3][:, 1].tolist())
    unseen = np.array([[3, movie] for movie in range(movies) if movie not in seen], "int32")
    scores = model.predict(unseen, verbose=0).flatten()
    best = np.argsort(-scores)[:5]
    return outcome(model, history, recommended=unseen[best, 1], scores=np.sort(scores)[-5:])


@program()
def credit_card_fraud(keras):
    """Few rows are positive: an initial bias, class weights with a dataset, and precision and recall as metrics."""
    import tensorflow as tf

    random = np.random.default_rng(8)
    x = random.normal(size=(610, 9)).astype("float32")
    y = (x[:, 0] + x[:, 3] * x[:, 4] + random.normal(0, 0.4, 610) > 2.0).astype("float32")
    negative, positive = np.bincount(y.astype(int))
    weights = {0: len(y) / negative / 2, 1: len(y) / positive / 2}

    metrics = [
        keras.metrics.TruePositives(name="tp"),
        keras.metrics.FalsePositives(name="fp"),
        keras.metrics.Precision(name="precision"),
        keras.metrics.Recall(name="recall"),
        keras.metrics.AUC(name="prc", curve="PR"),
    ]
    model = keras.Sequential(
        [
            keras.Input((9,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(
                1, activation="sigmoid", bias_initializer=keras.initializers.Constant(np.log(positive / negative))
            ),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=metrics)
    before = model.evaluate(x, y, batch_size=128, verbose=0, return_dict=True)
    data = tf.data.Dataset.from_tensor_slices((x[:500], y[:500])).shuffle(500, seed=1).batch(72).prefetch(2)
    valid = tf.data.Dataset.from_tensor_slices((x[500:], y[500:])).batch(72)
    history = model.fit(data, epochs=5, class_weight=weights, validation_data=valid, verbose=0)
    return outcome(model, history, before=before["loss"])


@program()
def house_prices_in_folds(keras):
    """Cross-validation as in competitions: a new model for each fold, its out-of-fold predictions, weighted rows."""
    from sklearn.datasets import load_diabetes
    from sklearn.model_selection import KFold
    from sklearn.preprocessing import StandardScaler

    x, y = load_diabetes(return_X_y=True)
    x, y = x[:301].astype("float32"), np.log1p(y[:301]).astype("float32")
    weight = np.where(y > np.median(y), 1.5, 0.5).astype("float32")
    out_of_fold, scores, rates = np.zeros_like(y), [], []
    for train, valid in KFold(2, shuffle=True, random_state=42).split(x):
        keras.backend.clear_session()
        scaler = StandardScaler().fit(x[train])
        inputs = keras.Input((x.shape[1],))
        hidden = keras.layers.Dense(20, activation="relu")(inputs)
        hidden = keras.layers.Dense(8, activation="relu")(hidden)
        model = keras.Model(inputs, keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(4.8))(hidden))
        model.compile(
            loss=keras.losses.Huber(), optimizer=keras.optimizers.RMSprop(3e-3), metrics=[], weighted_metrics=["mae"]
        )
        history = model.fit(
            scaler.transform(x[train]),
            y[train],
            sample_weight=weight[train],
            batch_size=50,
            epochs=4,
            verbose=0,
            validation_data=(scaler.transform(x[valid]), y[valid], weight[valid]),
            callbacks=[
                keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=1, min_delta=0.01),
                keras.callbacks.EarlyStopping(monitor="val_mae", patience=2, restore_best_weights=True),
            ],
        )
        out_of_fold[valid] = model.predict(scaler.transform(x[valid]), batch_size=64, verbose=0)[:, 0]
        scores.append(min(history.history["val_loss"]))
        rates.append(float(keras.backend.get_value(model.optimizer.learning_rate)))
    return outcome(model, history, out_of_fold=out_of_fold, scores=scores, rates=rates)


@program()
def several_targets(keras):
    """One trunk, three heads by name, with a loss, a weight and metrics for each."""
    random = np.random.default_rng(21)
    x = random.normal(size=(403, 12)).astype("float32")
    price = (x[:, :3].sum(axis=1, keepdims=True) + 0.1 * random.normal(size=(403, 1))).astype("float32")
    segment = np.argmax(x[:, 3:7] + 0.2 * random.normal(size=(403, 4)), axis=1).astype("int32")
    tags = (x[:, 7:10] > 0.3).astype("float32")
    targets = {"price": price, "segment": segment, "tags": tags}

    inputs = keras.Input((12,), name="features")
    trunk = keras.layers.Dense(24, activation="gelu", name="trunk")(inputs)
    outputs = {
        "price": keras.layers.Dense(1, name="price")(trunk),
        "segment": keras.layers.Dense(4, activation="softmax", name="segment")(trunk),
        "tags": keras.layers.Dense(3, activation="sigmoid", name="tags")(trunk),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=keras.optimizers.Nadam(0.01),
        loss={"price": "mse", "segment": "sparse_categorical_crossentropy", "tags": "binary_crossentropy"},
        loss_weights={"price": 0.2, "segment": 1.0, "tags": 2.0},
        metrics={"price": ["mae"], "segment": ["accuracy"], "tags": [keras.metrics.BinaryAccuracy(name="hits")]},
    )
    history = model.fit(
        x[:310],
        {name: values[:310] for name, values in targets.items()},
        batch_size=45,
        epochs=4,
        shuffle=True,
        validation_data=(x[310:], {name: values[310:] for name, values in targets.items()}),
        verbose=0,
    )
    predicted = model.predict(x[310:], batch_size=45, verbose=0)
    return outcome(model, history, price=predicted["price"], segment=predicted["segment"])
