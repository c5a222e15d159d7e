"""Settings: all have defaults, and a wrong one is named with its range."""

import pytest

from service.settings import Settings, SettingsError, load_settings


def test_every_setting_has_a_default(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FRCNN_{name.upper()}", raising=False)
    settings = load_settings()
    assert settings.port == 8000
    assert settings.api_keys_file is None


def test_the_environment_is_read_and_an_argument_wins(monkeypatch):
    monkeypatch.setenv("FRCNN_PORT", "9000")
    monkeypatch.setenv("FRCNN_MAX_BATCH", "3")
    settings = load_settings(port=9001, max_batch=None)
    assert (settings.port, settings.max_batch) == (9001, 3)


@pytest.mark.parametrize(
    ("name", "value", "phrase"),
    [
        ("PORT", "70000", "from 0 to 65535"),
        ("PORT", "tcp://10.0.0.1:80", "from 0 to 65535"),
        ("MAX_BATCH", "0", "a whole number from 1 to 256"),
        ("MAX_PIXELS", "-4", "from 1 to 2000000000"),
        ("SCORE_THRESHOLD", "1.5", "a number from 0 to 1"),
        ("TORCH_THREADS", "none", "a whole number from 1 to 1024"),
        ("PRECISION", "int4", "'auto', 'fp32', 'tf32', 'bf16', 'fp16' or 'int8'"),
        ("DEVICE", "tpu", "auto, cpu, cuda or cuda:N"),
        ("LOG_FORMAT", "xml", "'json' or 'text'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_range(monkeypatch, name, value, phrase):
    monkeypatch.setenv(f"FRCNN_{name}", value)
    with pytest.raises(SettingsError) as error:
        load_settings()
    assert f"FRCNN_{name} is {value!r}" in str(error.value)
    assert phrase in str(error.value)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(SettingsError, match=r"FRCNN_PORT[^\n]*\n[^\n]*FRCNN_MAX_BATCH"):
        load_settings(port=-1, max_batch=1000)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().port = 1
