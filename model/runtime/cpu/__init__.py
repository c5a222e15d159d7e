"""Passes for inference on a CPU: functions that rewrite layers of a model in place and return how many."""
