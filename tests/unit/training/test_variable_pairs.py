from spark_tensorflow_distributor.training.variable_pairs import by_position, by_text, differing, unmatched_texts


def test_variables_of_a_model_are_matched_by_position():
    ranks = [[("a", 1), ("b", 2), ("c", 3)], [("a", 1), ("x", 2), ("c", 4)], [("a", 1), ("b", 2), ("c", 3), ("d", 5)]]
    assert by_position(ranks) == [(0, 0, 0), (2, 2, 2)]
    assert differing(ranks, by_position(ranks)) == [(2, 2, 2)]


def test_new_variables_are_matched_by_text_and_order():
    ranks = [[("k", 1), ("b", 2), ("k", 3)], [("b", 2), ("own", 9), ("k", 1), ("k", 4)]]
    assert by_text(ranks) == [(0, 2), (2, 3), (1, 0)]
    assert differing(ranks, by_text(ranks)) == [(2, 3)]
    assert unmatched_texts(ranks) == []


def test_texts_that_ranks_list_unequally_often_are_not_matched():
    ranks = [[("k", 1), ("k", 2), ("b", 3)], [("k", 2), ("b", 3)]]
    assert by_text(ranks) == [(2, 1)]
    assert unmatched_texts(ranks) == ["k"]
