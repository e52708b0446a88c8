"""Defines the options that several commands share, and turns them into arguments."""

import argparse
from collections.abc import Sequence
from typing import Any

from ..config import renamed_arguments
from ..errors import ConfigurationError

# The options that are not named like the runner's arguments. Those whose names are ordinary words, such as env, would
# be found in sentences where they mean something else.
_OPTIONS = {"use_gpu": "--cpu", "use_gpu=False": "--cpu", "use_gpu=True": "no --cpu", "py_modules": "--py-module"}
_OPTIONS |= {
    argument + ending: f"--{argument.replace('_', '-')}{' ' * len(ending)}"
    for ending in ("", "=")
    for argument in (
        "num_slots",
        "gpu_resource_name",
        "use_custom_strategy",
        "max_restarts",
        "min_slots",
        "checkpoint_dir",
        "checkpoint_every",
        "start_timeout",
        "stall_timeout",
        "gradient_compression",
        "log_dir",
    )
}


def add_run_options(parser: argparse.ArgumentParser, *, is_required: bool = True) -> None:
    """Add the arguments of ``MirroredStrategyRunner``.

    Args:
        parser: The command's parser.
        is_required: Whether ``--num-slots`` is required.
    """
    group = parser.add_argument_group("run")
    add = group.add_argument
    add(
        "--num-slots", type=int, required=is_required, metavar="N", help="number of GPUs or, with --cpu, of Spark tasks"
    )
    add("--cpu", action="store_true", help="train on CPUs")
    add("--gpu-resource-name", default="gpu", metavar="NAME", help="default: %(default)s")
    add("--use-custom-strategy", action="store_true", help="the program creates its own strategy")
    add("--max-restarts", type=int, default=0, metavar="N", help="relaunch after a failure (default: %(default)s)")
    add("--min-slots", type=int, metavar="N", help="smallest number of slots for a relaunch")
    add("--checkpoint-dir", metavar="DIR", help="where to keep checkpoints, a shared path or a URL")
    add("--checkpoint-every", default="30", metavar="WHEN", help="seconds, or '500 steps' (default: %(default)s)")
    add("--start-timeout", type=float, default=600.0, metavar="SECONDS", help="default: %(default)g")
    add("--stall-timeout", type=float, metavar="SECONDS", help="fail a run that makes no progress (default: never)")
    add("--gradient-compression", choices=["bfloat16", "float16"], help="compress gradients between hosts")
    add("--log-dir", metavar="DIR", help="receives the files that workers write below get_context().log_dir")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="environment variable of the workers")
    add("--py-module", action="append", default=[], metavar="NAME_OR_PATH", help="module to send to the workers")
    add("--quiet", action="store_true", help="do not show the workers' output")
    add("--progress", action=argparse.BooleanOptionalAction, help="show a progress bar (default: in a terminal)")


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that configure the Spark session."""
    add = parser.add_argument_group("Spark session").add_argument
    add("--master", metavar="URL", help="default: spark-submit's, or local with as many tasks as the run needs")
    add("--remote", metavar="sc://HOST", help="connect to a server of Spark Connect")
    add("--conf", action="append", default=[], metavar="KEY=VALUE", help="a Spark setting")


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """Parse ``NAME=VALUE`` texts.

    Raises:
        ConfigurationError: A text is not of this form.
    """
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise ConfigurationError(f"{option} {text!r} is not of the form NAME=VALUE.")
        found[name] = value
    return found


def runner_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of ``MirroredStrategyRunner``, except the session."""
    return {
        "num_slots": options.num_slots,
        "use_gpu": not options.cpu,
        "gpu_resource_name": options.gpu_resource_name,
        "use_custom_strategy": options.use_custom_strategy,
        "max_restarts": options.max_restarts,
        "min_slots": options.min_slots,
        "checkpoint_dir": options.checkpoint_dir,
        "checkpoint_every": _number_or_text(options.checkpoint_every),
        "start_timeout": options.start_timeout,
        "stall_timeout": options.stall_timeout,
        "gradient_compression": options.gradient_compression,
        "log_dir": options.log_dir,
        "env": pairs(options.env, "--env"),
        "py_modules": options.py_module,
        "log_to_driver": not options.quiet,
        "progress": options.progress,
    }


def naming_options(text: str) -> str:
    """Return a message of the runner with the names of the options instead of its arguments."""
    return renamed_arguments(text, _OPTIONS)


def _number_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
