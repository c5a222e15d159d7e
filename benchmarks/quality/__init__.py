"""What detectors find and miss, and how they were trained."""
