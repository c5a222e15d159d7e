"""Draw on images: detections and proposals drawn as boxes, objectness as a heat map."""
