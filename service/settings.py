"""The settings of the service: one frozen object, made with the app and never at import.

A setting is one field of ``Settings``: the environment variable, the option of ``frcnn serve``, the error messages and
the table in docs/operations.md are made from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "FRCNN_"

Device = Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class SettingsError(ValueError):
    """A setting has a wrong value; the text names the setting, the value and what is allowed."""


class Settings(BaseSettings):
    """Settings read from the environment (``FRCNN_PORT=9000``) and from keyword arguments, which win.

    The service runs on the defaults alone. ``load_settings`` turns a wrong value into one readable sentence.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True)

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")

    max_connections: int = Field(
        2048,
        ge=16,
        le=65_536,
        description="most connections at once; at it, idle ones are closed, then new ones get 503",
    )

    weights: str = Field(
        "lite-voc20", min_length=1, description="a name in weights/manifest.toml, or a checkpoint's path"
    )
    device: Device = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = Field(
        "auto", description="arithmetic of the network; int8 needs what frcnn calibrate writes"
    )
    canvas: Literal["buckets", "exact"] = Field("buckets", description="pad images to a few sizes, or hardly at all")
    torch_threads: int | None = Field(None, ge=1, le=1024, description="threads of one inference; unset: torch decides")
    cache_dir: Path | None = Field(None, description="where fetched weights are kept; unset: the user's cache folder")

    max_batch: int = Field(8, ge=1, le=256, description="most images in one batch")
    max_batch_pixels: int = Field(
        16_000_000, ge=10_000, le=10_000_000_000, description="most padded pixels in one batch; one image always goes"
    )
    max_queue: int = Field(64, ge=1, le=100_000, description="most images that wait; over it, 429")
    max_queue_pixels: int = Field(
        256_000_000,
        ge=10_000,
        le=100_000_000_000,
        description="most pixels that wait, padded or as decoded; over it, 429",
    )
    timeout_ms: int = Field(30_000, ge=1, le=3_600_000, description="deadline of a request that names none")
    drain_seconds: float = Field(30.0, ge=0, le=3600, description="grace for accepted requests after SIGTERM")
    watchdog_seconds: float = Field(
        120.0, ge=0.1, le=3600, description="a call of the detector that takes longer is given up, and the process ends"
    )

    image_processes: int | None = Field(
        None, ge=1, le=256, description="processes that decode images and draw boxes; unset: by the cores"
    )
    image_memory_bytes: int = Field(
        512 * 2**20,
        ge=128 * 2**20,
        le=2**40,
        description="memory for decoding and drawing, in all processes together; an image that needs more is 413",
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1024, le=2**31, description="largest request body")
    max_bodies_bytes: int = Field(
        256 * 2**20, ge=1024, le=2**40, description="request bodies held in sum; over it, 429; one body always goes"
    )
    body_seconds: float = Field(20.0, ge=0.1, le=3600, description="longest that a request body may take to arrive")
    max_pixels: int = Field(64_000_000, ge=1, le=2_000_000_000, description="largest image, width x height")

    score_threshold: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="for requests that name none; unset: the checkpoint's own"
    )
    max_detections: int | None = Field(
        None, ge=1, le=1000, description="for requests that name none; unset: the checkpoint's own"
    )

    api_keys_file: Path | None = Field(None, description="one key a line; unset: no key is asked for")
    max_inflight_per_key: int | None = Field(
        None, ge=1, le=100_000, description="most requests of one API key at once; over it, 429; unset: no limit"
    )
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain, for HTTPS; unset: HTTP")
    tls_key_file: Path | None = Field(None, description="PEM private key of the certificate, if not in the same file")

    deepstack: bool = Field(False, description="also answer as DeepStack does, for Frigate and others")
    huggingface: bool = Field(False, description="also answer as Hugging Face's object detection does")
    open_inference: bool = Field(False, description="also answer the Open Inference Protocol v2, as Triton does")

    log_format: Literal["json", "text"] = Field("json", description="one JSON object a line, or text")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")


def load_settings(**overrides: Any) -> Settings:
    """Return the settings of the environment, with those ``overrides`` in their place that are not None.

    Raises ``SettingsError`` with one line for each wrong setting.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_error_sentence(detail) for detail in error.errors())) from None


def _error_sentence(detail: ErrorDetails) -> str:
    name = str(detail["loc"][0])
    field = Settings.model_fields.get(name)
    variable = f"{PREFIX}{name.upper()}"
    if field is None:
        return f"{variable} is not a setting; `frcnn serve --help` lists them."
    return f"{variable} is {detail['input']!r}; it must be {_allowed_values(field, detail)} ({field.description})."


def _allowed_values(field: FieldInfo, detail: ErrorDetails) -> str:
    low = next((bound.ge for bound in field.metadata if hasattr(bound, "ge")), None)
    high = next((bound.le for bound in field.metadata if hasattr(bound, "le")), None)
    if low is not None and high is not None:
        kind = "a number" if field.annotation in (float, float | None) else "a whole number"
        return f"{kind} from {low} to {high}"
    if detail["type"] == "literal_error":
        return f"one of {detail['ctx']['expected']}"
    if detail["type"] == "string_pattern_mismatch":
        return str(field.description)
    message = detail["msg"]
    return message[0].lower() + message[1:]
