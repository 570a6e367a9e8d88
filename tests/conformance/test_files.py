"""The checkpoints of each public callback, read by those who have it, have it otherwise, or do not have it."""

import pytest

from support.conformance.files import (
    claims_its_state,
    loads_elsewhere,
    resumes_with_another_setting,
    warns_of_a_plain_loader,
)


@pytest.mark.parametrize(
    "check", [loads_elsewhere, resumes_with_another_setting, claims_its_state, warns_of_a_plain_loader]
)
def test_checkpoints(subject, check, tmp_path):
    assert "\n".join(check(subject, tmp_path)) == ""
