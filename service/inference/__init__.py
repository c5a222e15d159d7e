"""From an image's bytes to its detections: decoding, queue, batches, and the thread that owns the detector."""
