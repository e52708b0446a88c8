"""The runner's arguments, validated."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from types import ModuleType
from typing import Any

from .errors import ConfigurationError
from .formatting import a_type
from .resume.interval import CheckpointInterval

# "s3:/bucket/run7", which pathlib makes of a URL; but not a drive of Windows.
_DAMAGED_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")


@dataclass(frozen=True)
class RunnerConfig:
    """The arguments of :class:`~spark_tensorflow_distributor.MirroredStrategyRunner`, in the user's terms and units.

    ``spark`` and ``callbacks`` are not among them.

    Attributes:
        checkpoint_interval: ``checkpoint_every``, parsed.

    Raises:
        ConfigurationError: A value has the wrong type or is out of range.
    """

    num_slots: int
    local_mode: bool = False
    use_gpu: bool = True
    gpu_resource_name: str = "gpu"
    use_custom_strategy: bool = False
    max_restarts: int = 0
    min_slots: int | None = None
    checkpoint_dir: str | os.PathLike[str] | None = None
    checkpoint_every: float | str = 30.0
    start_timeout: float = 600
    stall_timeout: float | None = None
    log_to_driver: bool | str = True
    progress: bool | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    resource_profile: Any = None
    gradient_compression: str | None = None
    py_modules: Sequence[ModuleType | str | os.PathLike[str]] = ()
    log_dir: str | os.PathLike[str] | None = None
    checkpoint_interval: CheckpointInterval = field(init=False)

    def __post_init__(self) -> None:
        check_whole_number("num_slots", self.num_slots, 1)
        check_whole_number("max_restarts", self.max_restarts, 0)
        for name in ("local_mode", "use_gpu", "use_custom_strategy"):
            _check_boolean(name, getattr(self, name))
        if self.progress is not None:
            _check_boolean("progress", self.progress)
        if self.min_slots is not None:
            check_whole_number("min_slots", self.min_slots, 1)
            if self.min_slots > self.num_slots:
                raise ConfigurationError(f"min_slots={self.min_slots} is greater than num_slots={self.num_slots}.")
        # The class is frozen.
        object.__setattr__(self, "checkpoint_dir", _checked_checkpoint_dir(self.checkpoint_dir))
        object.__setattr__(self, "log_dir", _checked_log_dir(self.log_dir))
        object.__setattr__(self, "checkpoint_interval", _parse_interval(self.checkpoint_every))
        _check_positive("start_timeout", self.start_timeout)
        if self.stall_timeout is not None:
            _check_positive("stall_timeout", self.stall_timeout)
        if not isinstance(self.gpu_resource_name, str) or not self.gpu_resource_name:
            raise ConfigurationError(
                f"gpu_resource_name is {self.gpu_resource_name!r}; it must be the <name> of "
                "spark.task.resource.<name>.amount, usually 'gpu'."
            )
        self._check_env()
        if isinstance(self.py_modules, str | os.PathLike | ModuleType | Mapping):
            raise ConfigurationError(
                f"py_modules is {self.py_modules!r}; it must be a list of module objects, names of modules, or paths."
            )
        object.__setattr__(self, "py_modules", tuple(self.py_modules))
        if self.log_to_driver not in (True, False, "logging"):
            raise ConfigurationError(
                f"log_to_driver is {self.log_to_driver!r}; it must be True to print the workers' output, 'logging' to "
                "send it to the logger spark_tensorflow_distributor.workers, or False."
            )
        if self.gradient_compression not in (None, "bfloat16", "float16"):
            raise ConfigurationError(
                f"gradient_compression is {self.gradient_compression!r}; it must be None, 'bfloat16' or 'float16'."
            )
        if self.local_mode and not self.use_gpu and self.num_slots > 1:
            raise ConfigurationError(
                f"num_slots={self.num_slots} with local_mode=True and use_gpu=False: the driver is a single CPU "
                "worker. Use num_slots=1, or local_mode=False to train on the cluster."
            )

    @property
    def checkpoint_path(self) -> str | None:
        """``checkpoint_dir`` as a string."""
        return None if self.checkpoint_dir is None else os.fspath(self.checkpoint_dir)

    @property
    def warnings(self) -> list[str]:
        """What has no effect, in sentences."""
        if self.local_mode and self.max_restarts:
            return [
                f"max_restarts={self.max_restarts} has no effect with local_mode=True: the function's exceptions are "
                "raised unchanged. Use local_mode=False to relaunch after a failure."
            ]
        if self.min_slots is not None and not self.max_restarts:
            return [
                f"min_slots={self.min_slots} has no effect with max_restarts=0: only a relaunch may use fewer slots "
                f"than num_slots={self.num_slots}. Set max_restarts."
            ]
        return []

    def _check_env(self) -> None:
        if not isinstance(self.env, Mapping):
            raise ConfigurationError(f"env is {a_type(self.env)}; it must be a mapping of str to str.")
        for name, value in self.env.items():
            if not isinstance(name, str) or not isinstance(value, str) or "=" in name or not name:
                raise ConfigurationError(f"env has {name!r}: {value!r}; names and values must be str.")
        reserved = {"TF_CONFIG", "CUDA_VISIBLE_DEVICES"} & set(self.env)
        if reserved:
            raise ConfigurationError(
                f"env sets {', '.join(sorted(reserved))}, which the runner sets for each worker. "
                "Choose devices with num_slots and use_gpu."
            )
        object.__setattr__(self, "env", dict(self.env))  # later changes to the caller's mapping have no effect


def renamed_arguments(text: str, names: Mapping[str, str]) -> str:
    """Return a message in the terms of a caller to whom the runner's arguments have other names.

    Args:
        text: The message.
        names: What to replace, such as ``num_slots`` or ``use_gpu=False``, and by what. The longest match counts.
    """
    found = "|".join(re.escape(each) + r"\b" * each[-1].isalnum() for each in sorted(names, key=len, reverse=True))
    return re.sub(rf"(?<![\w./\\-])(?:{found})(?![/\\-])", lambda match: names[match[0]], text)


def check_whole_number(name: str, value: object, least: int) -> None:
    """Check the value of an argument.

    Raises:
        ConfigurationError: It is not a whole number of at least ``least``.
    """
    # bool is an int in Python, but num_slots=True is surely a mistake.
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigurationError(f"{name} is {value!r} ({type(value).__name__}); it must be a whole number.")
    if value < least:
        raise ConfigurationError(f"{name} is {value}; it must be at least {least}.")


def _check_boolean(name: str, value: object) -> None:
    # The string "False" would count as True. As in 1.0.0, other objects have their truth value.
    if isinstance(value, str):
        raise ConfigurationError(f"{name} is {value!r} ({type(value).__name__}); it must be True or False.")


def _checked_checkpoint_dir(folder: object) -> str | None:
    if folder is None:
        return None
    path = _path_text(folder)
    if not path:
        raise ConfigurationError(
            f"checkpoint_dir is {folder!r}; it must be a path or URL that all hosts can reach, or None to keep the "
            "checkpoints on the driver."
        )
    if not isinstance(folder, str) and _DAMAGED_URL.match(path):
        scheme, _, rest = path.partition(":/")
        url = f"{scheme}://{'/' if scheme == 'file' else ''}{rest}"
        raise ConfigurationError(
            f"checkpoint_dir is {folder!r}, which is neither a URL nor an absolute path: pathlib removes a slash from "
            f"URLs. Pass {url!r} as a string."
        )
    return path


def _path_text(path: object) -> str | None:
    """Return a path as a string; None if it is not one."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    return text if isinstance(text, str) else None


def _checked_log_dir(folder: object) -> str | None:
    if folder is None:
        return None
    path = _path_text(folder)
    if not path or "://" in path:
        raise ConfigurationError(
            f"log_dir is {folder!r}; it must be the path of a directory on the driver. To write to a "
            "URL, pass it to the training function as an argument."
        )
    return path


def _parse_interval(every: object) -> CheckpointInterval:
    try:
        return CheckpointInterval.parse(every)
    except ValueError:
        raise ConfigurationError(
            f"checkpoint_every is {every!r}; it must be a number of seconds above 0, or a string such as '500 steps'."
        ) from None


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigurationError(f"{name} is {value!r}; it must be a number of seconds above 0.")
