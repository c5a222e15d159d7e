"""The feature extractors, each giving a pyramid of maps with fixed strides."""
