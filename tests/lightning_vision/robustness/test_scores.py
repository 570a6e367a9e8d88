"""What is left of a score under corruption, by hand."""

import pytest

from lightning_vision.robustness import robustness_scores

TABLE = {("fog", 1): 0.75, ("fog", 3): 0.25, ("snow", 1): 0.5, ("snow", 3): 0.25}


def test_row_86_a_table_of_two_corruptions_and_two_severities_by_hand() -> None:
    found = robustness_scores(0.875, TABLE)

    assert found.corruptions["fog"].by_severity == {1: 0.75, 3: 0.25}
    assert {name: scores.mean for name, scores in found.corruptions.items()} == {"fog": 0.5, "snow": 0.375}
    assert found.corruptions["snow"].relative == 0.375 / 0.875
    assert (found.clean, found.mpc, found.rpc) == (0.875, 0.4375, 0.5)


@pytest.mark.parametrize("clean", [0.1, 1 / 3, 0.7, 0.95, 0.123456789])
def test_row_86_equal_scores_are_worth_exactly_all(clean: float) -> None:
    found = robustness_scores(clean, {(name, level): clean for name in "abcdefg" for level in range(1, 6)})

    assert found.rpc == 1
    # Adding up and dividing rounds for some of these.
    assert any(sum([score] * 7) / 7 != score for score in (0.1, 1 / 3, 0.7, 0.95, 0.123456789))


def test_nothing_is_relative_to_a_score_of_nothing() -> None:
    found = robustness_scores(0.0, TABLE)

    assert (found.rpc, found.corruptions["fog"].relative) == (None, None)


def test_a_table_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="snow has no score at severity 3, which another corruption has"):
        robustness_scores(1.0, {cell: score for cell, score in TABLE.items() if cell != ("snow", 3)})
    with pytest.raises(ValueError, match="no scores of corrupted images"):
        robustness_scores(1.0, {})
