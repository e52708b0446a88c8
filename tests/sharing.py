"""Distributes tests over several processes (``scripts/test -n 3``): which tests stay together, and in which order."""

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# The longest groups start first. The cluster tests mostly wait and the conformance tests keep the cores busy, so
# tests without TensorFlow run alongside them. Short groups come last: all processes then end at about the same time.
_ORDER = (
    "tests/cluster/",
    "tests/training/conformance/",
    "tests/training/programs/",
    "tests/spark/",
    "tests/training/test_resume.py",
    "tests/training/test_patches.py",
    "tests/training/test_data_runs.py",
    "tests/training/",
    "tests/project/",
    "Spark Connect",
    "tests/unit/",
)
# Files whose tests share nothing but the Spark session: only the cases of one function must stay together.
_BY_FUNCTION = (
    "tests/spark/test_endings.py",
    "tests/spark/test_run.py",
    "tests/training/test_predict_clusters.py",
    "tests/training/test_resume.py",
    "tests/training/test_runner_training.py",
)


def scope_of(test: str) -> str:
    """Return the name of a test's group, which runs in one process."""
    path = test.partition("::")[0]
    for folder in ("tests/cluster/", "tests/unit/"):  # the former share hosts, the latter take no time
        if path.startswith(folder):
            return folder
    if "connect" in test:  # its server has a fixed port
        return "Spark Connect"
    if path in _BY_FUNCTION:
        return test.partition("[")[0]
    return path


class Scheduler(LoadScopeScheduling):
    """pytest-xdist's ``loadscope`` with these groups, in this order."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=_rank), last=False)
        super()._assign_work_unit(node)


def _rank(scope: str) -> int:
    return next((rank for rank, path in enumerate(_ORDER) if scope.startswith(path)), len(_ORDER))
