"""The middleware around Ray's proxy, with an ASGI app in the place of Ray."""

import subprocess
import sys
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from service.server.ray_proxy import RayProxyMiddleware, environment
from service.settings import Settings

LIMIT = 10_000


def client_of(ray: ASGIApp, max_bytes: int = 10**9) -> httpx.AsyncClient:
    """Return a client of the middleware around ``ray``, an app in the place of Ray's proxy."""
    proxy = RayProxyMiddleware(ray, Settings(max_body_bytes=LIMIT, timeout_ms=3000), max_bytes)
    return httpx.AsyncClient(transport=httpx.ASGITransport(proxy), base_url="http://proxy")


def error_response(status: int, text: str, **headers: str) -> ASGIApp:
    """Return an app that responds as Ray itself does: plain text, and a request id of its own."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        all_headers = {"content-type": "text/plain", "x-request-id": "id-of-ray", **headers}
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in all_headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": text.encode()})

    return app


async def replica_that_dies(scope: Scope, receive: Receive, send: Send) -> None:
    """Send nothing, as Ray does when the replica of a request ends."""


async def test_a_request_whose_replica_died_gets_503_and_retry_after() -> None:
    async with client_of(replica_that_dies) as client:
        response = await client.post("/detect", content=b"image", headers={"X-Request-ID": "client-id"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"] == "client-id"


@pytest.mark.parametrize(
    ("ray_status", "status", "code", "retry_after"),
    [(408, 504, "deadline_passed", None), (429, 429, "queue_full", "7"), (503, 503, "unavailable", "7")],
)
async def test_rays_own_errors_become_problem_documents(
    ray_status: int, status: int, code: str, retry_after: str | None
) -> None:
    async with client_of(error_response(ray_status, "no", retry_after="7")) as client:
        response = await client.post("/detect", content=b"image")
    assert (response.status_code, response.json()["code"], response.headers.get("retry-after")) == (
        status,
        code,
        retry_after,
    )


async def test_before_any_replica_serves_the_status_is_503_and_not_404() -> None:
    async with client_of(error_response(404, "Path '/' not found.")) as client:
        response = await client.get("/readyz")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "5"


async def test_responses_of_the_app_pass_with_one_request_id() -> None:
    app = error_response(413, '{"status": 413}', x_content_type_options="nosniff")
    async with client_of(app) as client:
        response = await client.post("/detect", content=b"image", headers={"X-Request-ID": "client-id"})
    assert (response.status_code, response.text) == (413, '{"status": 413}')
    assert response.headers.get_list("x-request-id") == ["client-id"]


async def test_ray_waits_a_little_longer_than_the_replica_and_clients_cannot_set_its_headers() -> None:
    headers: dict[str, str] = {}

    async def ray(scope: Scope, receive: Receive, send: Send) -> None:
        headers.update({name.decode(): value.decode() for name, value in scope["headers"]})

    async with client_of(ray) as client:
        request_headers = {
            "X-Request-Disconnect-Disabled": "?1",
            "X-Request-Timeout-Seconds": "0",
            "X-Request-ID": "a b\t",
        }
        await client.get("/", headers=request_headers | {"X-Request-Timeout-Ms": "5000"})
        assert float(headers["x-request-timeout-seconds"]) == 7
        assert headers.get("x-request-disconnect-disabled", "?0") == "?0"
        assert headers["x-request-id"].isalnum()
        await client.get("/", headers={"X-Request-Timeout-Ms": "soon"})
        assert float(headers["x-request-timeout-seconds"]) == 5
        await client.get("/", headers={"X-Request-Timeout-Ms": "9" * 5000})
        assert float(headers["x-request-timeout-seconds"]) == 3602


async def test_an_address_and_headers_over_64_kib_are_refused_before_ray_sees_them() -> None:
    async def ray(scope: Scope, receive: Receive, send: Send) -> None:
        pytest.fail("Ray was called")

    async with client_of(ray) as client:
        for response in (
            await client.get("/", headers={"X-A": "a" * 66_000}),
            await client.get("/", params={"a": "a" * 40_000}, headers={"X-A": "a" * 30_000}),
        ):
            assert (response.status_code, response.json()["code"]) == (400, "bad_request")
            assert "64 KiB" in response.json()["detail"]


def proxy_that_reads(sizes: list[int], message_types: list[str]) -> ASGIApp:
    """Return an app that reads the body as fast as it can, as Ray does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            sizes.append(len(message["body"]))
            if sum(sizes) > 2 * LIMIT:
                return
        message_types.append(message["type"])

    return app


async def test_the_proxy_bounds_the_bytes_of_all_bodies() -> None:
    async def body() -> Any:
        for _ in range(4):
            yield b"x" * 1000

    sizes: list[int] = []
    message_types: list[str] = []
    middleware = RayProxyMiddleware(proxy_that_reads(sizes, message_types), Settings(max_body_bytes=LIMIT), 3000)
    with middleware._bodies.reserve() as reserve_others:
        reserve_others(1500)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://proxy") as client:
            response = await client.post("/detect", content=body())
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert (sum(sizes), message_types) == (1000, ["http.disconnect"])  # so that Ray cancels the request
    assert middleware._bodies.reserved == 0


def test_the_middleware_needs_no_torch() -> None:
    program = "import sys, service.server.ray_proxy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_proxies_know_the_limits_of_the_service() -> None:
    variables = environment(Settings(max_body_bytes=12345, timeout_ms=99))
    assert (variables["FRCNN_MAX_BODY_BYTES"], variables["FRCNN_TIMEOUT_MS"]) == ("12345", "99")
    assert variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "service.server.ray_proxy:proxy_middlewares"
