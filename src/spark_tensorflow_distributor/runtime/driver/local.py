"""``local_mode``: runs the function in the driver's own process, and restores its environment."""

import contextlib
import gc
import importlib
import logging
import os
import runpy
import secrets
import selectors
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from ...config import RunnerConfig
from ...context import set_checkpoints
from ...data.frames import Frames
from ...errors import BrokenInputError, ClusterError, ConfigurationError, GpuConfigurationError
from ..devices import visible_devices
from ..process_tools import environment, missing_tensorflow, package_title
from ..program_files import ProgramFiles
from .log_dir import LogDirectory
from .modules import pack_modules
from .spark import unwrapped

_log = logging.getLogger(__name__)


def run_locally(
    config: RunnerConfig,
    function: Callable[..., Any] | str,
    kwargs: Mapping[str, Any],
    gpus: Sequence[str] | None,
    frames: Frames,
    on_shards: Callable[[Mapping[str, Any]], None] = lambda shards: None,
) -> Any:
    """Call the function in this process, as the only worker.

    Args:
        config: The runner's arguments.
        function: The training function, or the path of a script whose command line is ``kwargs["args"]``.
        kwargs: Its arguments.
        gpus: Entries of CUDA_VISIBLE_DEVICES; None for CPU training.
        frames: The DataFrames among the arguments.
        on_shards: Called with their rows, before the function.
    """
    from ...context import WorkerContext, set_context

    # With a TF_CONFIG from elsewhere, the strategy would wait for workers that never join.
    changes = {**config.env, "CUDA_VISIBLE_DEVICES": ",".join(gpus or ()), "TF_CONFIG": None}
    with environment(changes, restore_all=True):
        context = WorkerContext(0, 1, 0, 1, 0, checkpoint_dir=config.checkpoint_path, log_dir=_log_dir(config))
        previous = set_context(context)
        try:
            with _user_modules(config), _checkpoints(config), _shards(frames) as shards:
                on_shards(shards)
                if config.use_custom_strategy:
                    return _call(function, {**kwargs, **shards})
                with _imported("...training.strategy").local_scope():
                    return _call(function, {**kwargs, **shards})
        finally:
            set_context(previous)


def _imported(name: str) -> Any:
    """Import a module of the library that uses TensorFlow.

    Raises:
        ClusterError: TensorFlow is not installed.
    """
    try:
        return importlib.import_module(name, __package__)
    except ModuleNotFoundError as error:
        package = package_title(error.name or "")
        if package is None:
            raise
        advice = f"Install it with `{sys.executable} -m pip install tensorflow`, or train on the cluster "
        text = missing_tensorflow(
            f"the driver's Python ({sys.executable})", error, package, f"{advice}with local_mode=False."
        )
        raise ClusterError(text) from error


def _log_dir(config: RunnerConfig) -> str | None:
    if config.log_dir is None:
        return None
    path = os.path.abspath(config.log_dir)
    with contextlib.closing(LogDirectory(path)):
        return path


@contextlib.contextmanager
def _user_modules(config: RunnerConfig) -> Iterator[None]:
    """Make ``py_modules`` importable within the context, for example a file in another folder."""
    files = ProgramFiles(tempfile.gettempdir())
    try:
        entries = files.unpack(pack_modules(config.py_modules))
        sys.path += entries  # at the end, so that they shadow no module of this process
        try:
            yield
        finally:
            sys.path[:] = [entry for entry in sys.path if entry not in entries]
            for name, module in list(sys.modules.items()):
                if (getattr(module, "__file__", None) or "").startswith(tuple(entries) or "\0"):
                    del sys.modules[name]
    finally:
        files.close()


@contextlib.contextmanager
def _checkpoints(config: RunnerConfig) -> Iterator[None]:
    """Keep the function's own checkpoints in ``checkpoint_dir``, and warn about those that are not kept.

    ``fit`` is not saved: this would require patching Keras and TensorFlow, which other threads may be using.
    """
    if config.checkpoint_path is None:
        previous = set_checkpoints(_NoCheckpoints())
        try:
            yield
        finally:
            set_checkpoints(previous)
        return
    from ...resume.manual import ManualCheckpoints
    from ...resume.store import FolderStore
    from ...resume.writer import CheckpointWriter

    _log.warning(
        "local_mode: checkpoint_dir=%r keeps what the function passes to get_context().save_checkpoint(), but fit() "
        "itself is neither saved nor resumed. Use local_mode=False for that.",
        config.checkpoint_path,
    )
    store = FolderStore(config.checkpoint_path, secrets.token_hex(8))
    writer = CheckpointWriter(store, lambda _: None, _log.warning)
    previous = set_checkpoints(ManualCheckpoints(store, writer, True, _log.warning))
    try:
        yield
        writer.flush()
        with contextlib.suppress(Exception):  # at worst, the next run in this folder resumes from the end of this one
            store.finish()
    finally:
        try:
            writer.flush()
        finally:  # also if an interrupt ends the wait
            set_checkpoints(previous)


class _NoCheckpoints:
    """Warns once per run that checkpoints are not kept."""

    def __init__(self) -> None:
        self._has_warned = False

    def save(self, state: object) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "local_mode: save_checkpoint() keeps nothing without a checkpoint_dir. Set checkpoint_dir to a folder "
                "from which an interrupted run resumes."
            )

    def latest(self) -> None:
        return None


@contextlib.contextmanager
def _shards(frames: Frames) -> Iterator[dict[str, Any]]:
    """Yield the DataFrames' rows as shards, which are kept in files of this process."""
    if not frames.specs:
        yield {}
        return
    from ...data.intake import RowReceiver
    from ...data.shard import ShardId, open_shards

    intake = RowReceiver(
        frames.specs, frames.local_batches(), rank=0, world_size=1, directory=tempfile.gettempdir(), local_world_size=1
    )
    try:
        with selectors.DefaultSelector() as selector:  # select.select refuses descriptors above 1023
            selector.register(intake, selectors.EVENT_READ)
            selector.select()
        intake.acknowledge()
        layouts, files = intake.layout()
        shard_id = ShardId(rank=0, world_size=1, partition=0, seed=secrets.randbits(31))
        _imported("...data.store")  # without TensorFlow, fail before files are open
        shards = open_shards(layouts, _duplicates(files), shard_id)
    except BrokenInputError as error:
        # Errors in the DataFrame's own plan are raised unchanged.
        raise unwrapped(error.__cause__ or error) from None
    finally:
        intake.close()
    try:
        yield dict(shards)
    finally:
        for shard in shards.values():
            shard.close()
        # Datasets and models form reference cycles; until these are collected, the rows stay on the disk.
        gc.collect()


def _duplicates(files: Sequence[IO[bytes]]) -> list[int]:
    """Return duplicates of the files' descriptors. If one cannot be made, close the others."""
    with contextlib.ExitStack() as opened:
        found = []
        for file in files:
            found.append(os.dup(file.fileno()))
            opened.callback(os.close, found[-1])
        opened.pop_all()
    return found


def _call(function: Callable[..., Any] | str, kwargs: Mapping[str, Any]) -> Any:
    if not isinstance(function, str):
        return function(**kwargs)
    saved = sys.argv[:]
    sys.argv[:] = [function, *kwargs.get("args", ())]
    try:
        runpy.run_path(function, run_name="__main__")
    except SystemExit as error:
        if error.code not in (None, 0):
            raise ConfigurationError(f"The script {function!r} called sys.exit({error.code!r}).") from error
    finally:
        sys.argv[:] = saved
    return None


def local_gpus(config: RunnerConfig, addresses: Sequence[str] | None) -> tuple[str, ...]:
    """Return the driver's GPUs that the run uses.

    Args:
        config: The runner's arguments.
        addresses: The addresses that Spark assigned to the driver under the resource's name; None if there are none.

    Raises:
        GpuConfigurationError: The driver has no such resource, or fewer GPUs than ``num_slots``.
    """
    name = config.gpu_resource_name
    if addresses is None:
        raise GpuConfigurationError(
            f"local_mode with use_gpu=True needs the driver's GPUs, but Spark assigned the driver no resource "
            f"named {name!r}. Set spark.driver.resource.{name}.amount and spark.driver.resource.{name}.discoveryScript "
            "when the application starts, or use_gpu=False."
        )
    if config.num_slots > len(addresses):
        raise GpuConfigurationError(
            f"num_slots={config.num_slots} GPUs were requested in local_mode, but the driver has {len(addresses)}: "
            f"{list(addresses)}. Request at most {len(addresses)}, or raise spark.driver.resource.{name}.amount."
        )
    return visible_devices(addresses, config.num_slots, os.environ.get("CUDA_VISIBLE_DEVICES"))
