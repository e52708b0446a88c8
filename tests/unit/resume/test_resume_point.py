"""A checkpoint of ``fit`` as a file and back."""

import io

import numpy as np

from spark_tensorflow_distributor.resume import snapshot
from spark_tensorflow_distributor.resume.resume_point import CheckpointFacts, FitState, ResumePoint, VariableSpec


def test_facts_and_state_survive_the_file():
    facts = CheckpointFacts(
        run="r", fit=1, epoch=2, step=3, epoch_steps=4, iterators=5, sequence=6, complete=False, world_size=2,
        variables=[VariableSpec("kernel", [2, 3], "float32")],
    )  # fmt: skip
    state = FitState([np.ones((2, 3), np.float32)], [], [{"python": [3]}], [], {"loss": [0.5]}, [0])
    file = io.BytesIO()
    snapshot.write(file, {**facts.to_json(), "name": "fit1-00000006"}, vars(state))
    point = ResumePoint.of(*snapshot.read(file))
    assert (point.name, point.facts) == ("fit1-00000006", facts)
    np.testing.assert_array_equal(point.state.weights[0], state.weights[0])
    assert (point.state.history, point.state.epochs) == ({"loss": [0.5]}, [0])
