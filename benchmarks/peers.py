"""Other ways to get a Spark DataFrame into tf.data, which data.py compares with ours.

Each has two halves. ``hand_off`` runs in the driver and uses Spark; its result is sent to the worker processes as
JSON. ``batches`` runs in the workers and yields the batches of an epoch: pairs of features, ``[rows, width]``, and
labels. Where there were alternatives, the fastest one is used.
"""

import pickle
import queue
from multiprocessing.managers import BaseManager
from pathlib import Path

WORKERS = 2
BATCH = 1024
# Size of the shuffle buffer of streaming systems; ours and ``memory`` shuffle all rows of a worker.
POOL = 16 * BATCH


class Peer:
    """Optional methods of a system, besides ``hand_off`` and ``batches``."""

    def warm_up(self):
        """Import what the hand-off uses in Spark's Python workers; this is not measured."""

    def start(self, folder, rank):
        """Prepare a worker process before it imports TensorFlow."""

    def feed(self, df, folder, epochs):
        """Hand rows over from the driver while the workers read."""


class Parquet(Peer):
    """Spark writes Parquet, and pyarrow reads it again in each epoch, shuffled in buffers."""

    def hand_off(self, df, width, folder):
        df.write.parquet(f"{folder}/parquet")
        return {"files": files(folder, "parquet"), "width": width}

    def batches(self, handed, rank, epoch):
        import numpy as np
        import pyarrow.dataset
        import tensorflow as tf

        source = pyarrow.dataset.dataset(handed["files"][rank::WORKERS])
        generator = np.random.default_rng(epoch)

        def generate():
            rest = None
            for pool in source.to_batches(batch_size=POOL):
                features, labels = numbers(pool)
                order = generator.permutation(len(labels))
                features, labels = features[order], labels[order]
                if rest is not None:
                    features, labels = np.concatenate([rest[0], features]), np.concatenate([rest[1], labels])
                whole = len(labels) // BATCH * BATCH
                for start in range(0, whole, BATCH):
                    yield features[start : start + BATCH], labels[start : start + BATCH]
                rest = features[whole:], labels[whole:]
            if rest is not None and len(rest[1]):
                yield rest

        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature(None, handed["width"]))
        return dataset.prefetch(2)


class Memory(Parquet):
    """Spark writes Parquet, pyarrow reads it once, and each epoch gathers from arrays in memory."""

    def __init__(self):
        self._kept = None

    def batches(self, handed, rank, epoch):
        import numpy as np
        import pyarrow.dataset
        import tensorflow as tf

        if self._kept is None:
            source = pyarrow.dataset.dataset(handed["files"][rank::WORKERS])
            features, labels = zip(*[numbers(batch) for batch in source.to_batches()], strict=True)
            # Variables: a dataset's function would copy constants into its graph.
            self._kept = tf.Variable(np.concatenate(features)), tf.Variable(np.concatenate(labels))
        features, labels = self._kept
        order = tf.data.Dataset.from_tensor_slices(tf.random.shuffle(tf.range(labels.shape[0]), seed=epoch))
        return order.batch(BATCH).map(lambda rows: (tf.gather(features, rows), tf.gather(labels, rows))).prefetch(2)


class TFRecord(Peer):
    """Spark's Python workers write TFRecords, which tf.data reads and parses again in each epoch."""

    def warm_up(self):
        import tensorflow  # noqa: F401

    def hand_off(self, df, width, folder):
        def write(batches):
            import pyarrow as pa
            import tensorflow as tf
            from pyspark import TaskContext

            with tf.io.TFRecordWriter(f"{folder}/{TaskContext.get().partitionId():05d}.tfrecord") as writer:
                for batch in batches:
                    for row, label in zip(*numbers(batch), strict=True):
                        feature = {
                            "features": tf.train.Feature(float_list=tf.train.FloatList(value=row)),
                            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                        }
                        example = tf.train.Example(features=tf.train.Features(feature=feature))
                        writer.write(example.SerializeToString())
            yield pa.RecordBatch.from_pydict({"done": [1]})

        df.mapInArrow(write, "done long").collect()
        return {"files": files(folder, "tfrecord"), "width": width}

    def batches(self, handed, rank, epoch):
        import tensorflow as tf

        described = {
            "features": tf.io.FixedLenFeature([handed["width"]], tf.float32),
            "label": tf.io.FixedLenFeature([], tf.int64),
        }

        def parse(records):
            parsed = tf.io.parse_example(records, described)
            return parsed["features"], parsed["label"]

        dataset = tf.data.TFRecordDataset(handed["files"][rank::WORKERS])
        return dataset.shuffle(POOL, seed=epoch).batch(BATCH).map(parse).prefetch(2)


class Petastorm(Peer):
    """Petastorm's converter writes Parquet, and its reader yields the rows. It runs in a separate environment."""

    def hand_off(self, df, width, folder):
        from petastorm.spark import SparkDatasetConverter, make_spark_converter
        from pyspark.sql import functions as F

        df.sparkSession.conf.set(SparkDatasetConverter.PARENT_CACHE_DIR_URL_CONF, f"file://{folder}")
        if len(df.columns) > 2:  # one array instead of many columns makes its reader twice as fast
            df = df.select(F.array(*df.columns[:-1]).alias("features"), df.columns[-1])
        Path(folder, "converter").write_bytes(pickle.dumps(make_spark_converter(df)))
        return {"converter": f"{folder}/converter"}

    def batches(self, handed, rank, epoch):
        converter = pickle.loads(Path(handed["converter"]).read_bytes())
        with converter.make_tf_dataset(
            batch_size=BATCH,
            num_epochs=1,
            workers_count=WORKERS,
            cur_shard=rank,
            shard_count=WORKERS,
            shuffling_queue_capacity=POOL,
        ) as dataset:
            yield from dataset


class RowQueue(Peer):
    """Spark's Python workers put rows one by one into the worker's queue, as TensorFlowOnSpark does."""

    def start(self, folder, rank):
        self._manager = QueueManager(address=f"{folder}/queue-{rank}", authkey=b"benchmark")
        self._manager.start()
        self._queue = self._manager.get_queue()

    def hand_off(self, df, width, folder):
        return {"width": width}

    def feed(self, df, folder, epochs):
        def put(rows):
            from pyspark import TaskContext

            rank = TaskContext.get().partitionId()
            manager = QueueManager(address=f"{folder}/queue-{rank}", authkey=b"benchmark")
            manager.connect()
            waiting = manager.get_queue()
            for row in rows:
                features = row[0] if len(row) == 2 else row[:-1]
                waiting.put((features, row[-1]))
            waiting.put(None)

        for _ in range(epochs):
            df.coalesce(WORKERS).rdd.foreachPartition(put)

    def batches(self, handed, rank, epoch):
        import tensorflow as tf

        def generate():
            while (row := self._queue.get()) is not None:
                yield row

        dataset = tf.data.Dataset.from_generator(generate, output_signature=signature(handed["width"]))
        return dataset.shuffle(POOL, seed=epoch).batch(BATCH).prefetch(2)


class QueueManager(BaseManager):
    """Serves one queue; the process that starts it forks the server from itself."""


_SERVED = queue.Queue()
QueueManager.register("get_queue", callable=lambda: _SERVED)

PEERS = {"petastorm": Petastorm, "memory": Memory, "parquet": Parquet, "tfrecord": TFRecord, "queue": RowQueue}


def files(folder, suffix):
    return sorted(map(str, Path(folder).rglob(f"*.{suffix}")))


def signature(*shape):
    import tensorflow as tf

    return tf.TensorSpec(shape, tf.float32), tf.TensorSpec(shape[:-1], tf.int64)


def numbers(batch):
    """Return features and labels of an Arrow batch as arrays.

    The features are one array column or many plain columns; the label is the last column.
    """
    import numpy as np

    columns = batch.columns
    if len(columns) == 2:
        features = columns[0].flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, -1)
    else:
        features = np.column_stack([column.to_numpy() for column in columns[:-1]])
    return features, columns[-1].to_numpy()
