"""Quality of a detector on labelled images.

predictions.py          run a detector over a data set
coco.py                 COCO's average precision and recall
operating_points.py     precision and recall by score threshold, and the calibration of scores
temperature_scaling.py  temperature scaling of scores, and its fit
report.py               all figures of a detector on one split
"""
