"""Makes Spark load the classes that the tests need; run by setup.sh in a JVM that archives them when it ends.

A JVM that starts with the archive (class data sharing, JEP 350) takes about half of the processor time until its first
query is done.
"""

import sys
import tempfile

from pyspark.sql import SparkSession, functions


def pass_on(batches):
    yield from batches


def session(master):
    return (
        SparkSession.builder.master(master)
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .getOrCreate()
    )


def use(spark, folder):
    """Run queries, files and tasks of the kinds that the library and its tests have."""
    frame = spark.range(0, 100, 1, 2).selectExpr("id", "id % 7 as label", "array(id, id) as features")
    frame.groupBy("label").agg(functions.count("id")).join(frame, "label").orderBy("id").collect()
    frame.mapInArrow(pass_on, frame.schema, barrier=True).count()
    frame.mapInPandas(pass_on, frame.schema).toPandas()
    frame.repartition(2).write.parquet(folder, mode="overwrite")
    spark.read.parquet(folder).persist().count()
    spark.createDataFrame([(1, "a"), (2, None)], "a int, b string").filter("b is not null").collect()
    spark.sparkContext.parallelize(range(4), 2).barrier().mapPartitions(list).collect()


def main():
    with tempfile.TemporaryDirectory() as folder:
        spark = session("local[2]")
        use(spark, folder)
        spark.stop()
        if sys.platform == "linux":  # a master and a worker in this JVM
            spark = session("local-cluster[1,1,1024]")
            spark.range(10).count()
            spark.stop()


if __name__ == "__main__":
    main()
