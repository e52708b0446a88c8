"""Parses the command line and calls the command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import ConfigurationError, DistributorError, TrainingFailedError
from ..formatting import one_line, printable
from . import demo, doctor, run
from .options import add_run_options, add_session_options, naming_options

_PROGRAM = "python -m spark_tensorflow_distributor"


class _Command(argparse.ArgumentParser):
    """The parser of one command, which shows this command's usage if it does not know an option."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> tuple[Any, list[str]]:
        found, unknown = super().parse_known_args(*args, **kwargs)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0 for success, 1 for failure, 2 for wrong arguments, 130 after Ctrl-C.

    Args:
        arguments: The command's name and its arguments. Default: those of this process.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except ConfigurationError as error:
        print(f"{_PROGRAM}: {naming_options(str(error))}", file=sys.stderr)
        return 2
    except DistributorError as error:
        # A failed training's message quotes the script.
        named = str if isinstance(error, TrainingFailedError) else naming_options
        lines = [named(one_line(error, with_module=False))]
        if sys.version_info >= (3, 11):  # otherwise, the error's text contains the notes
            lines += map(naming_options, getattr(error, "__notes__", ()))
        print(printable("\n".join(lines)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(_PROGRAM, description="Distributed TensorFlow and Keras training on Spark.")
    commands = parser.add_subparsers(metavar="command", required=True, parser_class=_Command)

    runs = commands.add_parser("run", help="run a script on all workers", description=_described(run))
    add_run_options(runs)
    add_session_options(runs)
    runs.add_argument("--report", metavar="FILE", help="save the run's report as an HTML page")
    runs.add_argument("script", help="the Python script, read on this machine")
    runs.add_argument("args", nargs=argparse.REMAINDER, help="the script's own arguments")
    runs.set_defaults(command=run.run)

    doctors = commands.add_parser("doctor", help="say whether a run would start", description=_described(doctor))
    add_run_options(doctors, is_required=False)
    add_session_options(doctors)
    doctors.add_argument("--json", action="store_true", help="print the facts and findings as JSON")
    doctors.add_argument(
        "--timeout", type=float, default=120.0, metavar="SECONDS",
        help="how long to wait for executors, and for the tasks (default: %(default)g)",
    )  # fmt: skip
    doctors.set_defaults(command=doctor.doctor)

    demos = commands.add_parser(
        "demo", help="prepare rows, train and score on this machine", description=_described(demo)
    )
    demos.add_argument("--report", metavar="FILE", default="spark-tensorflow-demo.html", help="default: %(default)s")
    demos.set_defaults(command=demo.demo)

    launchers = commands.add_parser("launcher", help="print the path of a file with these commands, for spark-submit")
    launchers.set_defaults(command=_print_launcher)
    return parser


def _described(command: ModuleType) -> str:
    """Return a command's docstring as plain text."""
    return (command.__doc__ or "").replace("``", "")


def _print_launcher(_: argparse.Namespace) -> int:
    print(Path(__file__).parent.parent / "__main__.py")
    return 0
