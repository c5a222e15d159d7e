"""What makes inference fast: the forward pass in batches, buckets, precision, and passes that rewrite the model."""
