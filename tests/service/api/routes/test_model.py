"""``GET /model``."""


def test_the_model_reports_preset_classes_and_limits(service):
    model = service.client.get("/model").json()
    assert model["preset"] == "LITE"
    assert model["classes"] == ["__background__", "cat", "dog", "person"]
    assert model["parameters"] > 1_000_000
    assert model["limits"]["max_pixels"] == 4_000_000
    assert model["defaults"]["max_detections"] >= 1
    assert isinstance(model["defaults"]["max_detections"], int)
    assert model["anchors"][0]["stride"] == 8
    assert all(len(canvas) == 2 for canvas in model["canvases"])
