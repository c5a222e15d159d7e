"""The exit code of a failed start."""

import ssl

import pytest

from model.detector import CheckpointError, DeviceError
from service.errors import StartError
from service.exit_codes import MISCONFIGURED, NOT_STARTED, code_for, is_plain
from service.settings import SettingsError


@pytest.mark.parametrize(
    "error",
    [SettingsError(), DeviceError(), CheckpointError(), FileNotFoundError(), PermissionError(), ssl.SSLError()],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_a_restart_cannot_cure_are_misconfigured(error):
    assert code_for(error) == MISCONFIGURED
    assert is_plain(error)


@pytest.mark.parametrize("error", [StartError(), OSError(98, "address already in use"), RuntimeError()])
def test_other_errors_are_not_started(error):
    assert code_for(error) == NOT_STARTED
    assert is_plain(error) is not (type(error) is RuntimeError)
