"""What routes ask for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Header, Request

from service.api.schemas import MAX_TIMEOUT_MS
from service.inference.pipeline import Pipeline


def _pipeline(request: Request) -> Pipeline:
    pipeline = request.app.state.pipeline
    assert isinstance(pipeline, Pipeline)
    return pipeline


def _keyed(request: Request, pipeline: Annotated[Pipeline, Depends(_pipeline)]) -> None:
    if pipeline.keys is not None:
        pipeline.keys.check(request)


Served = Annotated[Pipeline, Depends(_pipeline)]
Keyed = Depends(_keyed)
TimeoutMs = Annotated[
    int | None,
    Header(
        alias="X-Request-Timeout-Ms",
        ge=1,
        le=MAX_TIMEOUT_MS,
        description="milliseconds after which the client does not want the answer any more",
    ),
]
