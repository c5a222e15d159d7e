"""The devices that a device setting means."""

from service.inference.detector import resolve_devices


def test_a_device_setting_means_all_devices_of_its_kind(monkeypatch):
    monkeypatch.setattr("model.detector.choose_devices", lambda setting: (f"{setting}:0", f"{setting}:1"))
    assert resolve_devices("cuda") == ("cuda:0", "cuda:1")
    assert resolve_devices("cpu") == ("cpu",)
