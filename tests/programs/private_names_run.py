"""Print what the table of private names lacks or invents, and which private methods of others are overridden."""

import importlib
import inspect
import json
import pkgutil

import spark_tensorflow_distributor as std
from spark_tensorflow_distributor.training.private_names import PRIVATE_MODULES, missing_names_warning


def classes():
    """Yield every class of the library."""
    for found in pkgutil.walk_packages(std.__path__, f"{std.__name__}."):
        if not found.name.endswith(".__main__"):
            module = importlib.import_module(found.name)
            yield from (each for each in vars(module).values() if inspect.isclass(each))


def overridden(cls):
    """Yield the private methods of a class that override those of TensorFlow, Keras or PySpark."""
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] in ("tensorflow", "keras", "pyspark")]
    for name, value in vars(cls).items():
        is_method = inspect.isroutine(value) or isinstance(value, property)
        if is_method and name.startswith("_") and not name.startswith("__"):
            yield from (name for base in bases if name in vars(base))


def found_although_made_up():
    """Yield the attributes that the table's check finds in classes that do not have them."""
    for entry in PRIVATE_MODULES:
        for name in entry.attributes:
            if not entry._replace(names=(), attributes=(f"{name}_of_this_test",)).missing():
                yield name


warnings = {
    name: missing_names_warning([importlib.import_module(name)]) for name in ("tensorflow", "keras", "tf_keras")
}
own = {cls for cls in classes() if cls.__module__.startswith(std.__name__)}
names = sorted({name for cls in own for name in overridden(cls)})
print(json.dumps({"warnings": warnings, "made up": list(found_although_made_up()), "overridden": names}))
