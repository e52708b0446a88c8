"""Run a Python script on all workers, as ``python script.py args`` would on each."""

import os
import sys
from argparse import Namespace

from ..config import RunnerConfig
from ..errors import ConfigurationError
from ..formatting import sentence
from ..runner import MirroredStrategyRunner
from ..runtime.driver.pickling import pack_script
from ..runtime.driver.report import RunReport
from .options import runner_arguments
from .spark import session


def run(options: Namespace) -> int:
    """Run the script that the command line names. The report is saved even if the run fails."""
    if options.report:
        _check_report_path(options.report)
    arguments = runner_arguments(options)
    # Starting Spark takes long, so report mistakes before.
    RunnerConfig(**arguments)
    pack_script(options.script, options.args)
    with session(options, options.num_slots) as spark:
        runner = MirroredStrategyRunner(spark=spark, **arguments)
        try:
            runner.run(options.script, args=options.args)
        finally:
            if runner.report is not None:
                print(f"\n{runner.report}")
                if options.report:
                    _save(runner.report, options.report)
    return 0


def _check_report_path(path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path) or not os.path.isdir(folder):
        what = "is a folder" if os.path.isdir(path) else f"is in the folder {folder}, which does not exist"
        raise ConfigurationError(f"--report is {path!r}, which {what}. Pass a file in a folder that exists.")


def _save(report: RunReport, path: str) -> None:
    """Save the report; a failure to do so must not hide the outcome of the run."""
    try:
        report.to_html(path)
    except OSError as error:
        print(f"The report cannot be saved: {sentence(error)}", file=sys.stderr)
    else:
        print(f"Saved the report as {path}")
