"""Draws small trainings with Hypothesis."""

import keras
from hypothesis import strategies as st
from random_models import HEADS, LAYERS_OF_SERIES, LAYERS_OF_VECTORS, LOSSES, METRICS, OPTIMIZERS, SUMMARIES, Training

# Only the sign of a gradient counts, however small it is; some gradients of these layers are sums that cancel out.
ONLY_SIGNS = ("Lion", "Adafactor")
CANCELLING = {"batch norm", "layer norm", "attention"}
CLIPPING = [("clipnorm", 0.1), ("global_clipnorm", 0.2), ("clipvalue", 0.05)]
EXTRAS = [("gradient_accumulation_steps", 2), ("use_ema", True), ("loss_scale_factor", 8.0)]

# Before Keras 3.14, regularisers of activities sum over the rows; see docs/keras.md.
UNEQUAL = {"regularised"} if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 14) else set()


@st.composite
def trainings(draw: st.DrawFn) -> Training:
    """Draw a training that, according to the docs, computes the same on several replicas as in one process."""
    inputs = draw(st.sampled_from(["features", "series", "words", "masked words"]))
    layers = _draw_layers(draw, inputs)
    is_by_step = layers[-1:] == ("each",)
    head = draw(st.sampled_from(sorted(set(HEADS) - ({"one hot"} if is_by_step else set()))))
    batch = draw(st.integers(1, 9))
    optimizers = [each for each in OPTIMIZERS if each not in ONLY_SIGNS or not CANCELLING & {*layers}]
    extras = EXTRAS if inputs in ("features", "series") else EXTRAS[:-1]  # Keras does not scale sparse gradients
    options = [option for some in (extras, CLIPPING) for option in draw(st.lists(st.sampled_from(some), max_size=1))]
    second = draw(st.booleans()) and not is_by_step
    own_rows = ["own rows", "own rows of unknown length"]
    data = draw(st.sampled_from(["arrays", "dataset", "unknown length", "generator", *own_rows]))
    weighting = draw(st.sampled_from(["none", "rows", "classes"]))
    if weighting == "classes" and (second or is_by_step or head == "numbers"):
        weighting = "none"
    losses = sorted(LOSSES[head])
    if weighting == "rows" or inputs == "masked words":  # Keras' factor for a single number is not a mean over rows
        losses = [name for name in losses if name != "number"]
    names = sorted(METRICS[head])
    if is_by_step:
        names = [name for name in names if name in ("mae", "accuracy", "scalar", "true positives", "squares")]
    metrics = tuple(draw(st.lists(st.sampled_from(names), max_size=2, unique=True)))
    eager = draw(st.sampled_from([True, True, True, False]))
    if data not in ("arrays", "dataset") and (second or "scalar" in metrics):
        eager = True  # In a graph, the step that finds no more data counts in Keras' mean of numbers.
    if "positions" in layers:
        eager, data = False, "arrays"  # Only a graph shows which lookups do not depend on the rows.
    if data in own_rows and {"dropout", "noise", "spatial dropout"} & {*layers}:
        data = "dataset"  # Rows that only one replica has have no position in a global batch.
    return Training(
        replicas=draw(st.sampled_from([2, 3, 4, 2, 3, 1])),
        batch=batch,
        rows=draw(st.integers(1, min(30, 4 * batch))),
        epochs=draw(st.sampled_from([1, 1, 2])),
        inputs=inputs,
        layers=layers,
        head=head,
        loss=draw(st.sampled_from(losses)),
        reduction=draw(st.sampled_from(["sum_over_batch_size", "mean", "sum", "mean_with_sample_weight"])),
        added=tuple(draw(st.lists(st.sampled_from(["mean", "vector", "constant"]), max_size=1))),
        second_output=second,
        optimizer=draw(st.sampled_from(optimizers)),
        options=tuple(options),
        metrics=metrics,
        weighting=weighting,
        validation_rows=draw(st.integers(0, 7)),
        data=data,
        steps_per_execution=draw(st.sampled_from([1, 1, 2, 3])),
        eager=eager,
        then=draw(st.sampled_from(["", "evaluate", "predict"])),
        reads_steps=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def _draw_layers(draw: st.DrawFn, inputs: str) -> tuple[str, ...]:
    vectors = draw(st.lists(st.sampled_from(sorted(LAYERS_OF_VECTORS.keys() - UNEQUAL)), max_size=2))
    if inputs == "features":
        return tuple(vectors)
    names = sorted(LAYERS_OF_SERIES)
    if inputs == "masked words":  # use layers that support masks, or ignore them
        names = [name for name in names if name not in ("convolution", "batch norm")]
    series = draw(st.lists(st.sampled_from(names), max_size=2))
    summary = draw(st.sampled_from(sorted(SUMMARIES)))
    if summary == "each":
        return (*series, summary)
    if inputs == "masked words" and summary == "flatten":
        summary = "average"
    return (*series, summary, *vectors)
