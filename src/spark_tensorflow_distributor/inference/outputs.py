"""What a model gives, as a Spark type. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError
from .features import Dims, shape_text

# TensorFlow's name of a type to Spark's. Spark has neither half floats nor unsigned integers: the next larger one.
SPARK_TYPES = {
    "bool": "boolean",
    "int8": "tinyint",
    "uint8": "smallint",
    "int16": "smallint",
    "uint16": "int",
    "int32": "int",
    "uint32": "bigint",
    "int64": "bigint",
    "uint64": "bigint",
    "float16": "float",
    "bfloat16": "float",
    "float32": "float",
    "float64": "double",
    "string": "string",
}


@dataclass(frozen=True)
class Output:
    """One output of a model.

    Attributes:
        name: its name.
        dims: its shape without the batch; None for a size that is not fixed.
        dtype: TensorFlow's name of the type.
    """

    name: str
    dims: Dims
    dtype: str

    @property
    def depth(self) -> int:
        """Levels of arrays in Spark: none for ``[batch]`` and for ``[batch, 1]``."""
        return 0 if self.dims == (1,) else len(self.dims)


def spark_type(outputs: Sequence[Output]) -> str:
    """The Spark type of a prediction, as a DDL string: of the only output, or a struct of all.

    Raises:
        DataError: an output's type does not exist in Spark.
    """
    if len(outputs) == 1:
        return _type_of(outputs[0])
    fields = (f"`{output.name.replace('`', '``')}`: {_type_of(output)}" for output in outputs)
    return f"struct<{', '.join(fields)}>"


def _type_of(output: Output) -> str:
    if output.dtype not in SPARK_TYPES:
        raise DataError(
            f"The model's output {output.name!r} is {shape_text(output.dims)} {output.dtype}, a type that Spark does "
            "not have. Let the model return real numbers, truth values or strings."
        )
    return "array<" * output.depth + SPARK_TYPES[output.dtype] + ">" * output.depth


def output_names(count: int, keys: Sequence[str] | None, declared: Sequence[str] | None) -> list[str]:
    """Names for a model's outputs.

    Args:
        count: how many there are.
        keys: the keys, where the model returns a dict.
        declared: names that the model itself has for them, if any.
    """
    if keys is not None:
        return list(keys)
    if declared and len(declared) == count == len(set(declared)):
        return list(declared)
    return [f"output_{number}" for number in range(count)]
