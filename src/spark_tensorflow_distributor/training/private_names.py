"""The private names of TensorFlow and Keras that this package relies on.

Any release may change them, so a trainer checks them once when it starts. Nothing here imports TensorFlow or Keras.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import NamedTuple


class PrivateModule(NamedTuple):
    """A private module and the names that are used from it.

    Attributes:
        path: The module's full name.
        names: Attributes, dotted where they are attributes of a class.
        reason: What the names are used for.
        attributes: Attributes of objects, after the class whose methods set them.
    """

    path: str
    names: tuple[str, ...]
    reason: str
    attributes: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        """Import the module; TensorFlow or Keras has loaded most of them already."""
        return importlib.import_module(self.path)

    def loaded(self) -> ModuleType | None:
        """Return the module if this process has imported it."""
        return sys.modules.get(self.path)

    def missing(self) -> list[str]:
        """Return the full names of what this release does not have."""
        try:
            module = self.load()
        except ImportError:
            return [self.path]
        missing = [name for name in self.names if not _has(module, name)]
        missing += [name for name in self.attributes if not _has_attribute(module, name)]
        return [f"{self.path}.{name}" for name in missing]


def missing_names_warning(packages: Iterable[ModuleType]) -> str | None:
    """Return a warning about the private names that the given packages lack; None if they have all of them.

    Args:
        packages: ``tensorflow``, ``keras`` or ``tf_keras``, as imported.
    """
    releases, names = [], []
    for package in packages:
        entries = [entry for entry in PRIVATE_MODULES if entry.path.partition(".")[0] == package.__name__]
        if missing := [name for entry in entries for name in entry.missing()]:
            releases.append(f"{package.__name__} {package.__version__}")
            names += missing
    if not names:
        return None
    return (
        f"Internals of {' and '.join(releases)} have changed: this library relies on {', '.join(names)}, which this "
        "release does not have. Features that need them are disabled. If training fails or its numbers differ from "
        "those of a single process, use another release."
    )


def _has(module: ModuleType, name: str) -> bool:
    try:
        functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        return False
    return True


def _has_attribute(module: ModuleType, name: str) -> bool:
    """Return whether the objects of a class have an attribute, as far as the code of its methods shows."""
    owner, _, attribute = name.partition(".")
    bases: tuple[type, ...] = getattr(getattr(module, owner, None), "__mro__", ())
    methods = (inspect.unwrap(each) for base in bases for each in vars(base).values())
    return any(attribute in getattr(getattr(each, "__code__", None), "co_names", ()) for each in methods)


AUTOGRAPH_LOADER = PrivateModule(
    "tensorflow.python.autograph.pyct.loader", ("load_source",), "removes the files that AutoGraph generates"
)
COLLECTIVE_STRATEGY = PrivateModule(
    "tensorflow.python.distribute.collective_all_reduce_strategy",
    ("coordination_config_pb2.CoordinatedJob",),
    "describes the cluster for the coordination service; runs collectives",
    ("CollectiveAllReduceExtended._cross_device_ops",),
)
CROSS_DEVICE_OPS = PrivateModule(
    "tensorflow.python.distribute.cross_device_ops", (), "runs collectives", ("CollectiveAllReduce._launchers",)
)
COLLECTIVE_LAUNCHER = PrivateModule(
    "tensorflow.python.distribute.cross_device_utils",
    ("CollectiveReplicaLauncher.all_reduce", "CollectiveReplicaLauncher._all_gather"),
    "runs collectives",
)
DISTRIBUTE_LIB = PrivateModule(
    "tensorflow.python.distribute.distribute_lib",
    (
        "StrategyExtendedV1._broadcast_to",
        "StrategyExtendedV1._call_for_each_replica",
        "StrategyExtendedV1._container_strategy",
        "StrategyExtendedV1._create_variable",
        "StrategyExtendedV1._distribute_datasets_from_function",
        "StrategyExtendedV1._experimental_distribute_dataset",
        "StrategyExtendedV1._experimental_distribute_values_from_function",
        "StrategyExtendedV1._gather_to_implementation",
        "StrategyExtendedV1._in_multi_worker_mode",
        "StrategyExtendedV1._local_results",
        "StrategyExtendedV1._num_replicas_in_sync",
        "StrategyExtendedV1._reduce_to",
        "StrategyExtendedV1._replica_ctx_all_reduce",
        "StrategyExtendedV1._replica_ctx_update",
        "StrategyExtendedV1._update",
        "StrategyExtendedV1._update_non_slot",
        "StrategyExtendedV1._use_merge_call",
        "StrategyExtendedV1._validate_colocate_with_variable",
        "UpdateContext",
    ),
    "is the base class of the replica's strategy, which overrides these methods",
)
DISTRIBUTE_VALUES = PrivateModule(
    "tensorflow.python.distribute.values", ("PerReplicaSpec._value_specs",), "builds models from the shapes of data"
)
DISTRIBUTE_INPUT = PrivateModule(
    "tensorflow.python.distribute.input_util",
    ("get_distributed_dataset", "get_distributed_datasets_from_function"),
    "divides the datasets of custom loops",
)
DISTRIBUTE_INPUT_LIB = PrivateModule(
    "tensorflow.python.distribute.input_lib", ("InputWorkers",), "divides the datasets of custom loops"
)
WORKER_UTIL = PrivateModule(
    "tensorflow.python.distribute.multi_worker_util", ("coordination_leader",), "sets the heartbeat timeout"
)
EAGER_CONTEXT = PrivateModule(
    "tensorflow.python.eager.context",
    ("_context", "context", "global_seed", "Context.check_collective_ops_peer_health"),
    "sets the heartbeat timeout; connects to the other workers; shows whether the program set a seed, and whether a "
    "process is safe to fork; restores the seeds of operations",
    ("Context._context_handle", "Context._rng"),
)
GRAPH_STACK = PrivateModule(
    "tensorflow.python.framework.ops", ("_default_graph_stack.reset",), "keeps the strategy's scope after clear_session"
)
DATASETS = PrivateModule(
    "tensorflow.python.data.ops.dataset_ops", ("DatasetV2._inputs",), "finds the shard that a dataset derives from"
)
BATCHED_DATASETS = PrivateModule(
    "tensorflow.python.data.ops.batch_op",
    (),
    "sees the argument of batch()",
    ("_BatchDataset._batch_size", "_ParallelBatchDataset._batch_size"),
)
DEVICE_ITERATORS = PrivateModule(
    "tensorflow.python.data.ops.multi_device_iterator_ops",
    ("_create_device_dataset",),
    "turns autotuning off in datasets for devices, so that their iterators end in time",
)
DATA_DISTRIBUTE = PrivateModule(
    "tensorflow.python.data.experimental.ops.distribute", ("_AutoShardDataset",), "gives each worker its own files"
)
DATA_SEEDS = PrivateModule(
    "tensorflow.python.data.util.random_seed", ("get_seed",), "gives unseeded datasets the same order on all workers"
)
STATEFUL_RANDOM = PrivateModule(
    "tensorflow.python.ops.stateful_random_ops",
    ("global_generator",),
    "saves the global generator without creating it",
)
RESOURCE_VARIABLES = PrivateModule(
    "tensorflow.python.ops.resource_variable_ops",
    (),
    "makes the variables of metrics sums over the workers",
    ("BaseResourceVariable._aggregation", "BaseResourceVariable._synchronization"),
)

KERAS_TRAINER = PrivateModule(
    "keras.src.backend.tensorflow.trainer",
    (
        "TFEpochIterator._enumerate_iterator",
        "TFEpochIterator._get_iterator",
        "TensorFlowTrainer._get_metrics_result_or_logs",
        "TensorFlowTrainer._make_function",
        "TensorFlowTrainer._maybe_symbolic_build",
        "TensorFlowTrainer._aggregate_additional_loss",
        "TensorFlowTrainer._symbolic_build",
        "_collective_all_reduce_multi_worker",
        "reduce_per_replica",
    ),
    "the loops over steps, the distribution of batches, the functions that run a step, and its logs",
    (
        "TFEpochIterator._current_iterator",
        "TFEpochIterator._distribute_strategy",
        "TFEpochIterator._distributed_dataset",
        "TFEpochIterator._num_batches",
        "TensorFlowTrainer._compile_loss",
        "TensorFlowTrainer._compile_metrics",
        "TensorFlowTrainer._distribute_strategy",
        "TensorFlowTrainer._initial_epoch",
        "TensorFlowTrainer._loss_tracker",
        "TensorFlowTrainer._run_eagerly",
    ),
)
KERAS_LAYER = PrivateModule("keras.src.layers.layer", ("Layer._flatten_layers",), "finds layers within layers")
KERAS_VARIABLE = PrivateModule(
    "keras.src.backend.common.variables", (), "finds TensorFlow's variable", ("Variable._value",)
)
KERAS_CALLBACKS = PrivateModule(
    "keras.src.callbacks",
    ("BackupAndRestore._save_model", "ModelCheckpoint._save_model"),
    "lets the chief alone write files",
)
KERAS_RANDOM = PrivateModule(
    "keras.src.backend.tensorflow.random",
    ("_cast_seed", "draw_seed", "dropout", "normal", "uniform"),
    "gives each row of a global batch its own random numbers",
)
KERAS_STATE = PrivateModule(
    "keras.src.backend.common.global_state",
    ("get_global_attribute", "set_global_attribute"),
    "saves the global seed generator without creating it, and selects it",
)
KERAS_LEGACY_LAYERS = PrivateModule(
    "keras.src.legacy.layers", ("AlphaDropout.call",), "gives each row of a global batch its own noise"
)
KERAS_LEGACY_H5 = PrivateModule(
    "keras.src.legacy.saving.legacy_h5_format", ("save_model_to_hdf5",), "writes a model's file atomically"
)
KERAS_LOSS = PrivateModule(
    "keras.src.losses.loss",
    ("apply_mask", "reduce_values", "scale_loss_for_distribution", "unscale_loss_for_distribution"),
    "makes sums, masked and weighted means in losses cover the whole batch",
)
KERAS_OPTIMIZER = PrivateModule(
    "keras.src.optimizers.base_optimizer",
    ("BaseOptimizer.apply", "BaseOptimizer.scale_loss"),
    "combines gradients over the workers before they are clipped; shows for which variables an optimizer was built",
    ("BaseOptimizer._trainable_variables",),
)
KERAS_SAVING = PrivateModule(
    "keras.src.saving.saving_lib",
    ("save_model", "save_weights_only"),
    "writes a model's file atomically",
)
KERAS_REGISTRATION = PrivateModule(
    "keras.src.saving.object_registration", ("get_registered_name",), "finds the user's own classes in a model"
)

TF_KERAS_DATA = PrivateModule(
    "tf_keras.src.engine.data_adapter",
    (
        "DataHandler._configure_dataset_and_inferred_steps",
        "DataHandler.enumerate_epochs",
        "DataHandler.steps",
        "DatasetAdapter",
        "single_batch_iterator",
    ),
    "the loops over steps, and the distribution of batches",
    ("DataHandler._adapter", "DataHandler._initial_epoch", "DataHandler._initial_step"),
)
TF_KERAS_TRAINING = PrivateModule(
    "tf_keras.src.engine.training",
    ("Model._validate_and_get_metrics_result", "_collective_all_reduce_multi_worker"),
    "the logs of a step, and the number of steps",
    ("Model._run_eagerly", "Model._steps_per_execution", "Model._train_counter"),
)
TF_KERAS_LAYER = PrivateModule(
    "tf_keras.src.engine.base_layer",
    ("Layer._flatten_layers",),
    "finds layers within layers, and what they draw random numbers with",
    ("BaseRandomLayer._random_generator",),
)
TF_KERAS_CALLBACKS = PrivateModule(
    "tf_keras.src.callbacks", ("ModelCheckpoint._save_model",), "lets all ranks wait for a file"
)
TF_KERAS_AUTOCAST = PrivateModule(
    "tf_keras.src.mixed_precision.autocast_variable",
    (),
    "finds TensorFlow's variable",
    ("AutoCastVariable._variable",),
)
TF_KERAS_COMPILED = PrivateModule(
    "tf_keras.src.engine.compile_utils",
    ("LossesContainer.__call__",),
    "treats vectors passed to add_loss as sums over the rows",
)
TF_KERAS_OPTIMIZER = PrivateModule(
    "tf_keras.src.optimizers.utils",
    ("all_reduce_sum_gradients", "filter_empty_gradients"),
    "combines gradients over the workers",
)
TF_KERAS_BUILT_OPTIMIZERS = PrivateModule(
    "tf_keras.src.optimizers.optimizer",
    ("Optimizer._var_key",),
    "shows for which variables an optimizer was built",
    ("Optimizer._index_dict",),
)
TF_KERAS_V1_OPTIMIZERS = PrivateModule(
    "tf_keras.src.optimizers.optimizer_v1", ("TFOptimizer.apply_gradients",), "combines gradients over the workers"
)
TF_KERAS_LEGACY_OPTIMIZERS = PrivateModule(
    "tf_keras.src.optimizers.legacy.optimizer_v2",
    ("OptimizerV2._create_all_weights",),
    "restores an optimizer before its first step",
)
TF_KERAS_LOSS = PrivateModule(
    "tf_keras.src.losses",
    ("Loss._get_reduction",),
    "lets losses take means in the strategy's scope",
    ("Loss._allow_sum_over_batch_size",),
)
TF_KERAS_LOSSES = PrivateModule(
    "tf_keras.src.utils.losses_utils",
    ("ReductionV2", "apply_valid_mask", "reduce_weighted_loss", "scale_loss_for_distribution"),
    "makes sums and masked means in losses cover the whole batch",
)
TF_KERAS_LOSS_SCALE = PrivateModule(
    "tf_keras.src.mixed_precision.loss_scale_optimizer",
    ("LossScaleOptimizer.get_scaled_loss", "LossScaleOptimizerV3.get_scaled_loss"),
    "keeps gradients in half precision as small as those of one process; saves the loss scale",
    ("LossScaleOptimizer._loss_scale", "_DynamicLossScaleState._weights"),
)
TF_KERAS_BACKEND = PrivateModule(
    "tf_keras.src.backend",
    ("RandomGenerator.dropout", "RandomGenerator.random_normal", "RandomGenerator.random_uniform"),
    "gives each row of a global batch its own random numbers, and both steps of a comparison the same ones",
    ("RandomGenerator._built", "RandomGenerator._generator", "RandomGenerator._rng_type", "RandomGenerator._seed"),
)
TF_KERAS_SAVING_API = PrivateModule(
    "tf_keras.src.saving.saving_api", ("save_model", "save_weights"), "writes a model's file atomically"
)
TF_KERAS_REGISTRATION = PrivateModule(
    "tf_keras.src.saving.object_registration", ("get_registered_name",), "finds the user's own classes in a model"
)

PRIVATE_MODULES = [entry for entry in list(globals().values()) if isinstance(entry, PrivateModule)]
