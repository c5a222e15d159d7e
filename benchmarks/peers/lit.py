"""LitServe: ``python -m benchmarks.peers.lit``."""

# LitServe reads the annotation of decode_request itself: it must not be a string.
from typing import Annotated, Any

import litserve
from fastapi import Body

from benchmarks.peers.models import BATCH, PORT, TIMEOUT, WAIT, Predictor


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.predictor = Predictor()

    def decode_request(self, request: Annotated[bytes, Body()]) -> bytes:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: Any) -> Any:
        return self.predictor.predict(x) if BATCH > 1 else self.predictor.predict([x])[0]

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=WAIT if BATCH > 1 else 0.0)
    server = litserve.LitServer(api, accelerator="cpu", timeout=TIMEOUT)
    server.run(host="127.0.0.1", port=PORT, log_level="error", generate_client_file=False, pretty_logs=False)
