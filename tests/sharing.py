"""Which tests run in one process, and in which order, where there are several: ``scripts/test -n 3``."""

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

# The longest come first, so that none of them is alone at the end. Tests on several hosts mostly wait, and leave the
# processor to the others.
_ORDER = (
    "tests/cluster/",
    "tests/training/conformance/",
    "tests/training/test_resume.py",
    "tests/training/test_patches.py",
    "tests/training/",
    "tests/spark/",
    "tests/unit/",
)
# Their tests have nothing in common but the Spark session: all cases of a function stay together, the file does not.
_BY_FUNCTION = (
    "tests/spark/test_endings.py",
    "tests/spark/test_run.py",
    "tests/training/test_data_runs.py",
    "tests/training/test_predict_clusters.py",
    "tests/training/test_resume.py",
    "tests/training/test_runner_training.py",
)


def scope_of(test: str) -> str:
    """What a test, by its pytest id, shares its process with."""
    path, _, name = test.partition("::")
    for folder in ("tests/cluster/", "tests/unit/"):  # one set of hosts; and a hundred files that take no time
        if path.startswith(folder):
            return folder
    if path in _BY_FUNCTION:
        return test.partition("[")[0]
    if path.endswith("test_conformance.py"):  # a launch for each Keras package
        return f"{path} {name.partition('[')[2].partition('-')[0]}"
    return path


class Scheduler(LoadScopeScheduling):
    """pytest-xdist's ``loadscope``, with these scopes in this order."""

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=_rank), last=False)
        super()._assign_work_unit(node)


def _rank(scope: str) -> int:
    return next((rank for rank, path in enumerate(_ORDER) if scope.startswith(path)), len(_ORDER))
