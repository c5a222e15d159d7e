"""Quality of a detector on labelled images.

predictions.py          run a detector over a data set
coco.py                 COCO's average precision and recall
operating_points.py     precision and recall by score threshold, and how honest scores are
temperature_scaling.py  a correction of scores, fitted to be honest
report.py               all figures of a detector on one split
"""
