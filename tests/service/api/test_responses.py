"""Boxes in the requested frame."""

import numpy as np

LOW = {"score_threshold": "0.01"}  # random weights score all classes alike: let some through


def test_boxes_are_written_in_the_requested_frame(service, cat_jpeg):
    def boxes(**params):
        return np.array(service.detect(cat_jpeg, params=LOW | params).json()["boxes"])

    corners = boxes()
    size = corners[:, 2:] - corners[:, :2]
    np.testing.assert_allclose(boxes(box_format="xywh"), np.hstack([corners[:, :2], size]), atol=1e-3)
    np.testing.assert_allclose(boxes(box_format="cxcywh"), np.hstack([corners[:, :2] + size / 2, size]), atol=1e-3)
    np.testing.assert_allclose(boxes(normalized="true") * [451, 300, 451, 300], corners, atol=1e-3)
