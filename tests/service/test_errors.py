"""The vocabulary of error codes."""

from service import errors


def test_every_error_has_a_code_of_its_own_and_a_status():
    kinds = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.ServiceError) and value is not errors.Busy
    ]
    codes = {kind.code for kind in kinds}
    assert len(codes) == len(kinds) > 15
    assert all(400 <= kind.status < 600 for kind in kinds)
