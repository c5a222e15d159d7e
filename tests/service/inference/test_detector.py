"""The devices that a device setting means."""

from service.inference.detector import each_device


def test_a_device_setting_means_all_devices_of_its_kind(monkeypatch):
    monkeypatch.setattr("model.detector.choose_devices", lambda setting: (f"{setting}:0", f"{setting}:1"))
    assert each_device("cuda") == ("cuda:0", "cuda:1")
    assert each_device("cpu") == ("cpu",)
