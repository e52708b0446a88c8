"""DataFrames in the training function: every row is read once, and training yields the model of one process."""

import sys

import numpy as np
import pytest
from pyspark import cloudpickle
from sklearn.datasets import load_digits  # imported here, because the import sets environment variables

import spark_tensorflow_distributor as std
from spark_tensorflow_distributor import MirroredStrategyRunner

# The workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def layouts(spark):
    """Return DataFrames of an ``id`` and a ``label`` with various partitions."""
    from pyspark.sql import functions as F

    def numbers(count, partitions=1, first=0):
        rows = spark.range(first, first + count, 1, partitions)
        return rows.withColumn("label", F.col("id") % 2)

    one = numbers(997)
    none = numbers(0)
    return {
        "one_partition": one,
        "many": numbers(997, 16),
        "more_partitions_than_rows": numbers(20, 50),
        "one_row_each": numbers(101, 101),
        "one_row": numbers(1),
        "two_rows": numbers(2, 2),
        "as_many_as_workers": numbers(3, 3),
        "fewer_than_a_batch": numbers(5, 2),
        "a_batch": numbers(12, 4),
        "a_batch_and_one": numbers(13, 4),
        "empty_partitions": numbers(300, 10).where("id < 30 or id >= 270"),
        "empty_first": none.union(numbers(100)),
        "skewed": numbers(900).union(numbers(3, 3, 900)).union(numbers(40, 8, 903)),
        "sorted": numbers(500, 5).orderBy("id"),
        "sorted_down": numbers(500, 5).orderBy(F.desc("id")),
        "by_label": numbers(400, 4).repartition(2, "label"),
        "coalesced": numbers(400, 40).coalesce(3),
        "shuffled": numbers(400, 4).repartition(7),
        "cached": numbers(250, 3).cache(),
        "joined": numbers(300, 4).join(numbers(300, 3).select("id"), "id"),
    }


def see_all(**shards):
    """Return what every rank reads from each shard: the ids of two passes, and the sizes of batches."""
    import json

    from pyspark import BarrierTaskContext

    own = {}
    for name, shard in shards.items():
        data = shard.to_tf("id", batch_size=12)
        passes = [[batch.numpy().tolist() for batch in data] for _ in range(2)]
        raw = [v for batch in shard.to_tf("id", batch_size=12, shuffle=False) for v in batch.numpy().tolist()]
        dropped = [len(batch) for batch in shard.to_tf("id", batch_size=12, drop_remainder=True)]
        steps = int(data.cardinality())
        own[name] = {
            "passes": passes,
            "raw": raw,
            "dropped": dropped,
            "steps": steps,
            "rows": [shard.num_rows, shard.total_rows],
        }
    return [json.loads(text) for text in BarrierTaskContext.get().allGather(json.dumps(own))]


@pytest.fixture(scope="module", params=[2, 3])
def seen(request, spark):
    runner = MirroredStrategyRunner(num_slots=request.param, use_gpu=False, use_custom_strategy=True)
    return runner.run(see_all, **layouts(spark)), request.param


# The number of rows of each DataFrame; ids count from 0.
ROWS = {
    "one_partition": 997,
    "many": 997,
    "more_partitions_than_rows": 20,
    "one_row_each": 101,
    "one_row": 1,
    "two_rows": 2,
    "as_many_as_workers": 3,
    "fewer_than_a_batch": 5,
    "a_batch": 12,
    "a_batch_and_one": 13,
    "empty_partitions": 60,
    "empty_first": 100,
    "skewed": 943,
    "sorted": 500,
    "sorted_down": 500,
    "by_label": 400,
    "coalesced": 400,
    "shuffled": 400,
    "cached": 250,
    "joined": 300,
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_read_exactly_once(seen, name):
    ranks, world_size = seen
    ranks = [rank[name] for rank in ranks]
    wanted = list(range(ROWS[name]))
    if name == "empty_partitions":
        wanted = [*range(30), *range(270, 300)]
    for number in range(2):
        ids = [v for rank in ranks for batch in rank["passes"][number] for v in batch]
        assert sorted(ids) == wanted
        assert {len(rank["passes"][number]) for rank in ranks} == {ranks[0]["steps"]}
    rows = [rank["rows"][0] for rank in ranks]
    assert max(rows) - min(rows) <= 1
    assert {rank["rows"][1] for rank in ranks} == {len(wanted)}
    # Without shuffling, each shard is in the DataFrame's order if that has one, except for a few rows at the end that
    # another worker handed over.
    assert sorted(v for rank in ranks for v in rank["raw"]) == wanted
    if name in ("one_partition", "many", "sorted", "skewed"):
        assert all((np.diff(rank["raw"]) < 0).sum() <= 2 for rank in ranks)
    assert {tuple(rank["dropped"]) for rank in ranks} == {(12 // world_size,) * (len(wanted) // 12)}


@pytest.mark.parametrize("name", ["one_partition", "sorted", "by_label", "coalesced"])
def test_shards_and_orders_are_random(seen, name):
    """Neither a shard nor its first batches reflect the labels or the order of the DataFrame."""
    ranks, _ = seen
    for rank in (rank[name] for rank in ranks):
        first, second = ([v for batch in each for v in batch] for each in rank["passes"])
        assert first != second
        assert sorted(first) == sorted(second)
        # These bounds are more than four standard deviations wide for the smallest shard.
        assert 0.2 < np.mean([v % 2 for v in first]) < 0.8
        assert abs(np.corrcoef(np.arange(len(first)), first)[0, 1]) < 0.65


def digits(spark, rows=1003):
    """scikit-learn's digits as a DataFrame: an id, an array of 64 numbers, a label, a weight."""
    images, labels = load_digits(return_X_y=True)
    data = [(i, (images[i] / 16).tolist(), int(labels[i]), float(1 + i % 3)) for i in range(rows)]
    return spark.createDataFrame(data, "id int, pixels array<float>, label int, weight float").repartition(5).cache()


def train_digits(optimizer, data, test, weighted, in_one, epochs=3, batch=96, together=None):
    """Train on shards in their own order, or in one process on arrays in exactly the same order."""
    import json

    import tensorflow as tf

    tf.keras.utils.set_random_seed(7)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((64,)),
            tf.keras.layers.Dense(32, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )
    chosen = {"sgd": tf.keras.optimizers.SGD(0.3), "adam": tf.keras.optimizers.Adam(0.01)}[optimizer]
    model.compile(chosen, "sparse_categorical_crossentropy", metrics=["accuracy"], weighted_metrics=["accuracy"])
    if in_one is None:
        from pyspark import BarrierTaskContext

        weight = "weight" if weighted else None
        own = [batch.numpy().tolist() for batch in data.to_tf("id", batch_size=batch, shuffle=False)]
        order = [json.loads(text) for text in BarrierTaskContext.get().allGather(json.dumps(own))]
        dataset = data.to_tf("pixels", "label", weight_column=weight, batch_size=batch, shuffle=False)
        held_out = test.to_tf("pixels", "label", weight_column=weight, batch_size=batch)
        history = model.fit(dataset, validation_data=held_out, epochs=epochs)
        evaluated = model.evaluate(held_out)
    else:
        images, labels = load_digits(return_X_y=True)
        images, weights = images / 16, 1 + np.arange(len(labels)) % 3 if weighted else None
        order, rows = in_one
        picked = np.concatenate(rows)
        assert [len(each) for each in rows[:-1]] == [batch] * (len(rows) - 1)
        pick = None if weights is None else weights[picked]
        rest = None if weights is None else weights[:400]
        held_out = (images[:400], labels[:400]) if rest is None else (images[:400], labels[:400], rest)
        history = model.fit(
            images[picked], labels[picked], sample_weight=pick, batch_size=batch, shuffle=False,
            validation_data=held_out, validation_batch_size=400, epochs=epochs,
        )  # fmt: skip
        evaluated = model.evaluate(images[:400], labels[:400], sample_weight=rest, batch_size=400)
    return {"order": order, "weights": model.get_weights(), "history": history.history, "evaluated": evaluated}


@pytest.mark.parametrize(
    ("workers", "optimizer", "weighted", "keras"),
    [(2, "sgd", False, "keras"), (3, "adam", False, "keras"), (2, "adam", True, "keras"), (2, "sgd", True, "tf_keras")],
)
def test_workers_train_the_model_of_one_process(spark, workers, optimizer, weighted, keras):
    env = {"TF_USE_LEGACY_KERAS": "1"} if keras == "tf_keras" else {}
    frame = digits(spark)
    test = frame.where("id < 400")  # not divisible by the batch, nor by three
    runner = MirroredStrategyRunner(num_slots=workers, use_gpu=False, env=env)
    many = runner.run(train_digits, optimizer=optimizer, data=frame, test=test, weighted=weighted, in_one=None)
    # The rows of all ranks at each step; the last step also has equally many from each rank.
    steps = []
    for parts in zip(*many["order"], strict=True):
        least = min(map(len, parts))
        steps.append(np.array([row for part in parts for row in part[:least]]))
    assert sum(map(len, steps)) == 1003 - 1003 % 96 % workers
    alone = MirroredStrategyRunner(num_slots=1, use_gpu=False, env=env)
    one = alone.run(train_digits, optimizer=optimizer, data=None, test=None, weighted=weighted, in_one=(None, steps))
    for a, b in zip(one["weights"], many["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert one["history"].keys() == many["history"].keys()
    for name, values in one["history"].items():
        np.testing.assert_allclose(values, many["history"][name], rtol=2e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(one["evaluated"], many["evaluated"], rtol=2e-4)
    assert one["history"]["loss"][-1] < 0.8 * one["history"]["loss"][0]


def test_fit_reads_equal_parts_and_leaves_out_different_rows_each_epoch(spark):
    """Each step of fit reads equally many rows on every rank; an epoch leaves out fewer rows than there are workers."""

    def train(data):
        import json

        import tensorflow as tf
        from pyspark import BarrierTaskContext

        class Watching(tf.keras.Model):
            def __init__(self):
                super().__init__()
                self.seen = []
                self.layer = tf.keras.layers.Dense(1)

            def call(self, x):
                return self.layer(x)

            def train_step(self, batch):
                x, _ = batch
                tf.py_function(lambda ids: self.seen.append(ids.numpy().astype(int).ravel().tolist()), [x], [])
                return super().train_step(batch)

        model = Watching()
        model.compile("sgd", "mse")
        scaled = data.to_tf(["id"], "label", batch_size=8, stack=True).map(lambda x, y: (x + 0.0, y))
        model.fit(scaled, epochs=3)
        model.fit(scaled, epochs=1)
        epochs = int(data.steps(8))
        seen, model.seen = model.seen, []
        endless = data.to_tf(["id"], "label", batch_size=8, stack=True, repeat=True)
        for _ in range(2):  # the second call must shorten its passes like the first one
            model.fit(endless, steps_per_epoch=epochs)
            assert {len(part) for part in model.seen} == {2}
        model.seen = seen
        return [json.loads(text) for text in BarrierTaskContext.get().allGather(json.dumps([model.seen, epochs]))]

    from pyspark.sql import functions as F

    frame = spark.range(0, 51, 1, 3).withColumn("label", F.lit(0.0))
    ranks = MirroredStrategyRunner(num_slots=4, use_gpu=False).run(train, data=frame)
    (steps,) = {steps for _, steps in ranks}
    assert steps == 6  # of two rows on each of four workers; the three remaining rows are fewer than the workers
    left_out = []
    for seen, _ in ranks:  # the passes of the second fit have other orders
        assert len({str(seen[epoch * steps : (epoch + 1) * steps]) for epoch in range(4)}) == 4
    for epoch in range(4):
        parts = [seen[epoch * steps : (epoch + 1) * steps] for seen, _ in ranks]
        assert {tuple(map(len, part)) for part in parts} == {(2,) * 6}
        ids = [row for part in parts for step in part for row in step]
        assert len(set(ids)) == len(ids) == 48
        left_out.append(frozenset(range(51)) - set(ids))
    assert len(set(left_out)) > 1


def test_adapt_uses_the_rows_of_all_ranks(spark):
    def train(data):
        import json

        import tensorflow as tf
        from pyspark import BarrierTaskContext

        layers = tf.keras.layers
        found = {
            "mean": data.statistics("x").mean,
            "words": data.vocabulary("word"),
            "few": data.adapt(layers.StringLookup(max_tokens=4), "word", fill_value="none").get_vocabulary(),
            "numbers": [int(v) for v in data.adapt(layers.IntegerLookup(), "number").get_vocabulary()],
        }
        for name in ("x", "empty"):
            try:
                data.adapt(layers.Normalization(axis=None), name)
            except std.DataError as error:
                found[name] = str(error)
        alone = data.adapt(layers.Normalization(axis=None), "x", fill_value=1000.5)
        stacked = data.adapt(layers.Normalization(), ["x", "number"], fill_value={"x": 1000.5})
        found["alone"] = [float(v) for v in alone(tf.constant([0.0, 1.0]))]
        found["stacked"] = stacked(tf.constant([[1.0, 2.0]])).numpy().tolist()
        return [json.loads(text) for text in BarrierTaskContext.get().allGather(json.dumps(found))]

    from pyspark.sql import functions as F

    ids = F.col("id")
    frame = spark.range(0, 1000, 1, 3).select(
        F.when(ids % 10 != 0, (1000 + ids / 1000).cast("float")).alias("x"),
        (ids % 4).alias("number"),
        F.when(ids < 500, "often").when(ids < 800, "ünder").when(ids < 950, "c").otherwise(None).alias("word"),
        F.array().cast("array<float>").alias("empty"),
    )
    ranks = MirroredStrategyRunner(num_slots=3, use_gpu=False).run(train, data=frame)
    assert all(rank == ranks[0] for rank in ranks)
    x = np.array([np.float32(1000 + i / 1000) for i in range(1000) if i % 10], np.float64)
    found = ranks[0]
    assert found["mean"] == pytest.approx(x.mean(), rel=1e-12)
    assert found["words"] == ["often", "ünder", "c"]
    assert found["few"] == ["[UNK]", "often", "ünder", "c"]
    assert found["numbers"] == [-1, 0, 1, 2, 3]
    assert "column 'x': 100 of 1000 rows are null. Pass fill_value" in found["x"]
    assert "column 'empty': it has no values" in found["empty"]
    filled = np.concatenate([x, np.full(100, 1000.5)])
    assert np.diff(found["alone"])[0] == pytest.approx(1 / filled.std(), rel=1e-3)
    assert found["stacked"][0][1] == pytest.approx((2 - 1.5) / np.sqrt(1.25), rel=1e-5)


def test_nulls_in_a_vector_column_are_counted(spark):
    from pyspark.ml.linalg import Vectors

    rows = [(Vectors.dense([1.0, 2.0]), 1), (None, 2), (Vectors.sparse(2, {1: 3.0}), 3)]
    frame = spark.createDataFrame(rows, ["features", "id"])

    def train(data):
        try:
            data.to_tf("features", batch_size=2)
        except std.DataError as error:
            return str(error), [batch.numpy().tolist() for batch in data.to_tf("id", batch_size=3, shuffle=False)]

    text, ids = MirroredStrategyRunner(num_slots=1, use_gpu=False).run(train, data=frame)
    assert "The DataFrame 'data', column 'features': 1 of 3 arrays is null" in text
    assert sorted(ids[0]) == [1, 2, 3]


def test_the_seed_determines_the_order(spark):
    def look(data):
        twice = [[batch.numpy().tolist() for batch in data.to_tf("id", batch_size=10, seed=3)] for _ in range(2)]
        other = [batch.numpy().tolist() for batch in data.to_tf("id", batch_size=10, seed=4)]
        endless = data.to_tf("id", batch_size=10, seed=3, repeat=True)
        steps = data.steps(10)
        return twice, other, [batch.numpy().tolist() for batch in endless.take(2 * steps)], steps

    def resume(data):
        later = data.to_tf("id", batch_size=10, seed=3, repeat=True, first_pass=1).skip(7)
        return [batch.numpy().tolist() for batch in later.take(data.steps(10) - 7)]

    # A shuffle delivers the blocks of these eight partitions in any order.
    frame = spark.range(0, 400, 1, 8)
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False)
    twice, other, endless, steps = runner.run(look, data=frame)
    assert twice[0] == twice[1] != other
    assert endless[:steps] == twice[0]
    assert sorted(v for batch in endless[steps:] for v in batch) == sorted(v for batch in twice[0] for v in batch)
    assert endless[steps:] != endless[:steps]
    assert runner.run(resume, data=frame) == endless[steps + 7 :]


def test_evaluate_and_predict_read_every_row_once(spark):
    """With 101 rows, or a single one, on three workers, the last batches are uneven or empty."""

    def train(data, tiny):
        import json

        import tensorflow as tf
        from pyspark import BarrierTaskContext

        tf.keras.utils.set_random_seed(1)
        model = tf.keras.Sequential([tf.keras.layers.Input((2,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=["mae"])
        found = {}
        for name, shard in (("data", data), ("tiny", tiny)):
            found[name] = model.evaluate(shard.to_tf(["x", "y"], "id", batch_size=12, stack=True))
        predicted = model.predict(data.to_tf(["x", "y"], batch_size=12, stack=True))[:, 0]
        strategy = tf.distribute.get_strategy()
        loop = strategy.experimental_distribute_dataset(data.to_tf("id", batch_size=12))
        ids = [int(v) for batch in loop for v in strategy.experimental_local_results(batch)[0]]
        try:
            model.fit(tiny.to_tf(["x", "y"], "id", batch_size=12, stack=True))
        except Exception as error:
            found["refused"] = [type(error).__name__, str(error)]
        report = [found, ids, sorted(predicted.tolist()), [w.tolist() for w in model.get_weights()]]
        return [json.loads(text) for text in BarrierTaskContext.get().allGather(json.dumps(report))]

    from pyspark.sql import functions as F

    ids = F.col("id")
    frame = spark.range(0, 101, 1, 7).select("id", (ids / 100).cast("float").alias("x"), (ids % 7).alias("y"))
    ranks = MirroredStrategyRunner(num_slots=3, use_gpu=False).run(train, data=frame, tiny=frame.where("id = 50"))
    assert sorted(row for _, own, _, _ in ranks for row in own) == list(range(101))
    rows = np.arange(101)
    for found, _, predicted, (kernel, bias) in ranks:
        expected = np.stack([rows / 100, rows % 7], axis=1) @ np.array(kernel)[:, 0] + bias[0]
        np.testing.assert_allclose(predicted, np.sort(expected), rtol=1e-4, atol=1e-5)
        away = expected - rows
        np.testing.assert_allclose(found["data"], [(away**2).mean(), np.abs(away).mean()], rtol=1e-5)
        np.testing.assert_allclose(found["tiny"], [away[50] ** 2, abs(away[50])], rtol=1e-5)
        kind, message = found["refused"]
        assert kind == "DataError"
        assert "'tiny' has fewer rows than there are workers" in message
