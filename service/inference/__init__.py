"""From one image's bytes to its detections: decode, queue, run on a device. Knows nothing of HTTP."""
