"""Each training has a checkpoint folder of its own, which the same program finds again."""

from spark_tensorflow_distributor.ml.folders import CheckpointNames


def test_trainings_that_run_at_the_same_time_or_on_other_rows_have_other_folders():
    names = CheckpointNames()
    with names.hold("id", 7) as first, names.hold("id", 7) as second, names.hold("other", 7) as third:
        assert (first, second, third) == ("id", "id-1", "other")
    with names.hold("id", 8) as of_other_rows:
        assert of_other_rows == "id-2"
    with names.hold("id", 7) as again:
        assert again == "id"
