"""A user's program, for type checkers in strict mode: it is checked, not run."""

from typing import Any

from pyspark.sql import DataFrame, SparkSession

from spark_tensorflow_distributor import (
    DataShard,
    MirroredStrategyRunner,
    RunCallback,
    RunHandle,
    RunReport,
    TrainingFailedError,
    WorkerContext,
    get_context,
    predict,
)


class StopAtLoss(RunCallback):
    def __init__(self) -> None:
        self.epochs = 0

    def on_epoch_end(self, fit: int | None, epoch: int, logs: dict[str, float]) -> bool | None:
        self.epochs += 1
        return logs["loss"] < 0.1

    def on_run_end(self, report: RunReport) -> None:
        print(report.status, report.metrics.get("loss", 0.0))


def train(train_data: DataShard, learning_rate: float) -> dict[str, float]:
    context: WorkerContext = get_context()
    state: Any = context.latest_checkpoint()
    rows: int = train_data.num_rows
    context.report(0, loss=1.0)
    if context.should_stop() and context.is_chief:
        context.save_checkpoint({"step": 1})
    return {"rows": float(rows), "rate": learning_rate, "resumed": float(state is not None)}


def main(spark: SparkSession, frame: DataFrame) -> str:
    runner = MirroredStrategyRunner(
        num_slots=2,
        use_gpu=False,
        spark=spark,
        max_restarts=1,
        checkpoint_every="500 steps",
        env={"A": "b"},
        py_modules=["features"],
        callbacks=[StopAtLoss()],
    )
    try:
        result: dict[str, float] = runner.run(train, train_data=frame, learning_rate=0.1)
    except TrainingFailedError as error:
        cause = error.root_cause
        return "" if cause is None else f"{cause.rank} @ {cause.host}: {cause.message}"
    nothing: None = runner.run("train.py", args=["--epochs", "5"])
    handle: RunHandle = runner.submit(train, train_data=frame, learning_rate=0.1)
    handle.stop()
    seconds = [entry["seconds"] for entry in handle.report.history]
    scored: DataFrame = predict(frame, "model.keras", ["a", "b"], stack=True, fill_value=0.0)
    return f"{result['rows'] + 1} {nothing} {seconds} {scored.columns} {runner.get_num_tasks() + 1}"
