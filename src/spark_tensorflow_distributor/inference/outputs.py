"""Converts a model's outputs to Spark types. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.columns import quoted
from ..errors import DataError
from .features import Dims, shape_text

if TYPE_CHECKING:
    from pyspark.sql.types import DataType

# Maps TensorFlow's types to Spark's. Half floats and unsigned integers, which Spark lacks, become the next larger type.
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
        name: The output's name.
        dims: The output's shape without the batch dimension, with None for a variable size.
        dtype: TensorFlow's name for the output's type.
    """

    name: str
    dims: Dims
    dtype: str

    @property
    def depth(self) -> int:
        """Number of levels of arrays in Spark: 0 for ``[batch]`` and for ``[batch, 1]``."""
        return 0 if self.dims == (1,) else len(self.dims)


def spark_type(outputs: Sequence[Output]) -> str:
    """Return the Spark type of a prediction as a DDL string: the type of a single output, or a struct of several.

    Raises:
        DataError: If Spark has no equivalent for an output's type.
    """
    if len(outputs) == 1:
        return _type_of(outputs[0])
    fields = (f"{quoted(output.name)}: {_type_of(output)}" for output in outputs)
    return f"struct<{', '.join(fields)}>"


def _type_of(output: Output) -> str:
    if output.dtype not in SPARK_TYPES:
        raise DataError(
            f"The model's output {output.name!r} is {shape_text(output.dims)} {output.dtype}, a type that Spark does "
            "not have. Make the model return real numbers, booleans or strings."
        )
    return "array<" * output.depth + SPARK_TYPES[output.dtype] + ">" * output.depth


def type_from_json(text: str) -> "DataType":
    """Return the Spark type whose method ``json()`` returned a text."""
    from pyspark.sql.types import StructType

    # Of Spark's types, only structs can be read from JSON by a public name.
    field = {"name": "value", "type": json.loads(text), "nullable": True, "metadata": {}}
    return StructType.fromJson({"type": "struct", "fields": [field]})["value"].dataType


def output_names(count: int, keys: Sequence[str] | None, declared: Sequence[str] | None) -> list[str]:
    """Return names for a model's outputs.

    Args:
        count: Number of outputs.
        keys: The keys of the dict that the model returns; None if it does not return a dict.
        declared: The names that the model declares; None if it declares none.
    """
    if keys is not None:
        return list(keys)
    if declared and len(declared) == count == len(set(declared)):
        return list(declared)
    return [f"output_{number}" for number in range(count)]
