"""Inference: the forward pass in batches, buckets, devices, precision, and passes that rewrite the model for speed."""
