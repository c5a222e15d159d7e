"""Checkpoints: what weights exist, where they lie, how they get into a model and out of one.

A folder of seven rooms, and the one place in ``model/`` that touches files:

    manifest.py   weights/manifest.toml as frozen dataclasses, and the folders where weights lie
    files.py      a name or a path -> a file with its classes -> a state dict; saving; hashes
    loading.py    a state dict -> a model, old key forms too, with errors that name the likely cause
    imagenet.py   a classifier's ImageNet weights -> the keys of a detector
    low_rank.py   fc6 in one layer <-> in two
    importing.py  a stranger's file -> a file of ours
    ranges.py     what the layers take in, for int8, beside the weights

Loading is safe: safetensors, or ``torch.load(weights_only=True)``. Nothing here ever runs code that a file brings.
"""

from model.checkpoint.imagenet import from_imagenet
from model.checkpoint.importing import import_file
from model.checkpoint.io import ResolvedCheckpoint, read_state, resolve, save, sha256, verify
from model.checkpoint.low_rank import factored, merged, rank_of, with_rank_of
from model.checkpoint.manifest import CheckpointError, ManifestEntry, cache_dir, load_manifest, weights_dir
from model.checkpoint.ranges import Ranges, ranges_file, read_ranges, write_ranges
from model.checkpoint.state_dict import canonical, load_into, preset_of

__all__ = [
    "CheckpointError",
    "ManifestEntry",
    "Ranges",
    "ResolvedCheckpoint",
    "cache_dir",
    "canonical",
    "factored",
    "from_imagenet",
    "import_file",
    "load_into",
    "load_manifest",
    "merged",
    "preset_of",
    "ranges_file",
    "rank_of",
    "read_ranges",
    "read_state",
    "resolve",
    "save",
    "sha256",
    "verify",
    "weights_dir",
    "with_rank_of",
    "write_ranges",
]
