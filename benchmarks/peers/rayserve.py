"""Ray Serve: ``python -m benchmarks.peers.rayserve``."""

# FastAPI reads annotations in the replica, where this module's names are not: they must not be strings.
from typing import Any

import ray
from fastapi import FastAPI, Request
from ray import serve

from benchmarks.peers.models import BATCH, PORT, WAIT, Predictor

app = FastAPI()


@serve.deployment(max_ongoing_requests=256)
@serve.ingress(app)
class Detect:
    def __init__(self) -> None:
        self.predictor = Predictor()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT if BATCH > 1 else 0.0)
    async def together(self, bodies: list[bytes]) -> list[dict[str, Any]]:
        return self.predictor.predict(bodies)

    @app.post("/predict")
    async def predict(self, request: Request) -> dict[str, Any]:
        return await self.together(await request.body())


if __name__ == "__main__":
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Detect.bind(), blocking=True)
