"""Checkpoints: which weights exist, where their files are, and how they are read into a model and written.

    manifest.py             weights/manifest.toml as frozen dataclasses, and the folders that hold weights
    io.py                   a name or a path -> a file with its classes -> a state dict; saving; hashes
    state_dict.py           a state dict -> a model; older key layouts; errors that name the likely cause
    imagenet.py             the ImageNet weights of a classifier -> the keys of a detector
    low_rank.py             fc6 as one layer <-> as the product of two
    quantization_ranges.py  the input ranges of layers, for int8, in a file beside the weights

No other module of ``model/`` that serves reads or writes files. Loading is safe: safetensors, or
``torch.load(weights_only=True)``; a file cannot run code.
"""

from model.checkpoint.imagenet import from_imagenet
from model.checkpoint.io import ResolvedCheckpoint, read_state, resolve, save, sha256, verify
from model.checkpoint.low_rank import factor_fc6, fc6_rank_of, match_fc6_rank, merge_fc6
from model.checkpoint.manifest import CheckpointError, ManifestEntry, cache_dir, load_manifest, weights_dir
from model.checkpoint.quantization_ranges import (
    QuantizationRanges,
    quantization_ranges_path,
    read_quantization_ranges,
    save_quantization_ranges,
)
from model.checkpoint.state_dict import identify_preset, load_into, normalise_keys

__all__ = [
    "CheckpointError",
    "ManifestEntry",
    "QuantizationRanges",
    "ResolvedCheckpoint",
    "cache_dir",
    "factor_fc6",
    "fc6_rank_of",
    "from_imagenet",
    "identify_preset",
    "load_into",
    "load_manifest",
    "match_fc6_rank",
    "merge_fc6",
    "normalise_keys",
    "quantization_ranges_path",
    "read_quantization_ranges",
    "read_state",
    "resolve",
    "save",
    "save_quantization_ranges",
    "sha256",
    "verify",
    "weights_dir",
]
