"""Images as responses: detections and proposals drawn, objectness as a heat map."""
