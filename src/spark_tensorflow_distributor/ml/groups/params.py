"""The Params of models for groups."""

from .. import converters
from ..params import AccessibleParams, _param


class HasGroupColumns(AccessibleParams):
    """What the estimator and the model of groups share."""

    groupCol = _param(
        "groupCol",
        "column, or list of columns, by whose values the rows are grouped: each group gets a model of its own, trained "
        "within one task, and transform uses the model of each row's group",
        converters.column_names,
    )
    handleInvalid = _param(
        "handleInvalid",
        "how transform treats rows of groups without a model: 'keep' (null predictions), 'skip' (leave them out) or "
        "'error'",
        converters.choice("keep", "skip", "error"),
    )

    def _set_defaults(self) -> None:
        super()._set_defaults()
        self._setDefault(handleInvalid="keep")


class HasGroups(HasGroupColumns):
    """How the models of groups are trained."""

    groupOrderCol = _param(
        "groupOrderCol",
        "column, or list of columns, by which the rows of a group are sorted before training",
        converters.column_names,
    )
    shuffleGroups = _param("shuffleGroups", "whether each epoch of a group has an order of its own", converters.boolean)
    numGroupTasks = _param(
        "numGroupTasks",
        "number of Spark tasks in which groups are trained. Default: four for each slot that the cluster has now, but "
        "at least spark.sql.shuffle.partitions",
        converters.integer(1),
    )
    maxGroupBytes = _param(
        "maxGroupBytes",
        "size of a group's rows above which the group fails instead of being trained",
        converters.integer(1),
    )
    groupModelsPath = _param(
        "groupModelsPath",
        "path or URL below which Spark writes the models of groups, in a folder for each training. Default: the "
        "executors keep them",
        converters.text,
    )

    def _set_defaults(self) -> None:
        super()._set_defaults()
        self._setDefault(shuffleGroups=True, maxGroupBytes=1 << 30)
