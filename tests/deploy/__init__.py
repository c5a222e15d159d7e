"""Tests of the files that people deploy with: image, Compose, Kubernetes, Prometheus, packages."""
