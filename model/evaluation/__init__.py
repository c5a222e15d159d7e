"""Quality of a detector on labelled images: COCO's average precision, and the score thresholds to serve with."""
