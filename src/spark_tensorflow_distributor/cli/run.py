"""Run a Python script on all workers, as ``python script.py args`` would on each."""

from argparse import Namespace

from ..runner import MirroredStrategyRunner
from .options import runner_arguments
from .spark import session


def run(options: Namespace) -> int:
    """Run the script of the command line; the report is saved even if it fails."""
    with session(options, options.num_slots) as spark:
        runner = MirroredStrategyRunner(spark=spark, **runner_arguments(options))
        try:
            runner.run(options.script, args=options.args)
        finally:
            if runner.report is not None:
                print(f"\n{runner.report}")
                if options.report:
                    runner.report.to_html(options.report)
                    print(f"Saved the report as {options.report}")
    return 0
