"""Recognises Spark's objects that exist only on the driver, and refuses to pickle them.

Those of classic Spark cannot be pickled, but the exception may only mention a lock deep inside them. Most of those of
Spark Connect can be: they would fail on the workers, which have no session.
"""

from ..formatting import a_type

_CLASSIC = {"SparkSession", "SparkContext", "DataFrame", "GroupedData", "Column", "WindowSpec", "RDD"}
# Functions with @udf or @udtf refer to objects of these modules, which hold the plain function and its types.
_WITHOUT_SESSION = ("pyspark.sql.connect.udf", "pyspark.sql.connect.udtf")


class DriverOnlyError(TypeError):
    """An object that exists only on the driver cannot be pickled.

    Args:
        value: The object.

    Attributes:
        value: The object.
    """

    def __init__(self, value: object) -> None:
        super().__init__(f"{a_type(value)} of Spark exists only on the driver")
        self.value = value


def refuse_driver_only(value: object) -> None:
    """Refuse to pickle an object that needs the driver's SparkSession.

    Raises:
        DriverOnlyError: The object is a session, a DataFrame, a Column or the like, of classic Spark or Spark Connect.
    """
    if any(map(_is_driver_only, type(value).__mro__)):
        raise DriverOnlyError(value)


def _is_driver_only(cls: type) -> bool:
    module = getattr(cls, "__module__", "")
    if not isinstance(module, str) or not module.startswith("pyspark."):
        return False
    if module.startswith("pyspark.sql.connect."):
        return module not in _WITHOUT_SESSION
    if module == "pyspark.ml.util":
        return cls.__name__ == "RemoteModelRef"  # a model that the server of Spark Connect holds
    return cls.__name__ in _CLASSIC and not module.startswith("pyspark.pandas.")
