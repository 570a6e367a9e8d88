"""The checkpoints of each public callback, read by those who have it, have it otherwise, or do not have it."""

from support.conformance.files import (
    claims_its_state,
    loads_elsewhere,
    resumes_with_another_setting,
    warns_of_a_plain_loader,
    write,
)


def test_checkpoints(subject, tmp_path):
    whole = write(subject, tmp_path)
    checks = (loads_elsewhere, resumes_with_another_setting, claims_its_state, warns_of_a_plain_loader)

    assert [f"{check.__name__}: {line}" for check in checks for line in check(subject, whole)] == []
