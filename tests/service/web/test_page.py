"""The page in a real browser, against a running service."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from service.rendering.boxes import colour
from tests.service.conftest import Live, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
EXAMPLES = Path(__file__).resolve().parents[3] / "service/web/examples"

browser_only = pytest.mark.browser
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def bundled() -> Iterator[Live]:
    """Serve the bundled weights, which detect the cat of the first example."""
    from service.inference.detector import load_detector

    with serving(load_detector) as live:
        yield live


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("NOT CHECKED HERE: the page needs Chromium, and there is none on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, bundled: Live):  # type: ignore[no-untyped-def]
    """Open the page with its first example; check at the end for messages in the console and for other hosts."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    console: list[str] = []
    hosts: set[str] = set()
    page.on("console", lambda message: console.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
    with page.expect_response("**/detect?*") as exchange:
        page.goto(bundled.url)
    page.detections = exchange.value.json()
    page.locator("#detections button").first.wait_for()
    page.console_messages = console
    yield page
    page.close()
    assert console == []
    assert hosts <= {urlsplit(bundled.url).netloc, ""}  # "" is a blob of the page's own


def pixels(page) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return the canvas as the user sees it."""
    return np.asarray(Image.open(io.BytesIO(page.locator("#canvas").screenshot())).convert("RGB")).astype(int)


def coloured(screenshot: np.ndarray, box: list[float], size: dict[str, int], rgb: tuple[int, int, int]) -> float:
    """Return the share of the box's outline, sampled along its sides, that has the colour ``rgb``."""
    scale = screenshot.shape[1] / size["width"]
    x1, y1, x2, y2 = (side * scale for side in box)
    inset = 1.0
    points = [(x, y) for x in np.linspace(x1 + 100, x2 - 3, 40) for y in (y1 + inset, y2 - inset)]
    points += [(x, y) for y in np.linspace(y1 + 30, y2 - 3, 40) for x in (x1 + inset, x2 - inset)]
    # Within a pixel: a line on the image's border is half outside it, and its other half smoothed.
    patches = [screenshot[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2] for x, y in points]
    near = [(np.abs(patch.astype(int) - rgb).max(axis=2) < 40).any() for patch in patches]
    return float(np.mean(near))


@browser_only
def test_boxes_are_drawn_where_the_json_has_them_and_the_slider_removes_them(page, bundled: Live) -> None:  # type: ignore[no-untyped-def]
    response = bundled.client.post("/detect", content=(EXAMPLES / "chelsea.jpg").read_bytes()).json()
    assert response["labels"][0] == "cat"
    cat = response["boxes"][0]
    assert coloured(pixels(page), cat, response["image"], colour(response["class_ids"][0])) > 0.9
    assert coloured(pixels(page), [side * 0.6 + 20 for side in cat], response["image"], colour(8)) < 0.2
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    slider = page.locator("#score")
    slider.evaluate("s => { s.max = 1; s.value = 1; s.dispatchEvent(new Event('input')) }")
    assert page.locator("#detections button").count() == 0
    assert coloured(pixels(page), cat, response["image"], colour(response["class_ids"][0])) < 0.1
    assert requests == []  # the page has the data already


@browser_only
def test_the_page_filters_as_the_service_does(page, bundled: Live) -> None:  # type: ignore[no-untyped-def]
    page.locator("[data-example='camera.jpg']").click()
    page.locator("canvas[aria-label^='camera.jpg']").wait_for()
    for score, nms in ((0.05, 0.5), (0.2, 0.3), (0.1, 0.8)):
        for name, value in (("score", score), ("nms", nms)):
            page.locator(f"#{name}").evaluate(
                "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }", value
            )
        options = {"score_threshold": score, "nms_threshold": nms}
        content = (EXAMPLES / "camera.jpg").read_bytes()
        response = bundled.client.post("/detect", params=options, content=content).json()
        assert page.locator("#detections .number").all_inner_texts() == [f"{s:.3f}" for s in response["scores"]]


@browser_only
def test_a_detection_shows_its_proposal_and_its_anchor(page) -> None:  # type: ignore[no-untyped-def]
    page.locator("#canvas").click()
    assert page.locator("#detections button[aria-pressed='true']").count() == 1
    row = page.detections["proposal_indices"][0]
    text = page.locator("#origin").inner_text()
    assert f"number {row + 1}, objectness {page.detections['proposals']['objectness'][row]:.3f}" in text
    page.locator("#detections button").first.press("Enter")  # by keyboard, too
    assert page.locator("#detections button[aria-pressed='true']").count() == 0


@browser_only
def test_proposals_by_level_and_heat_maps(page) -> None:  # type: ignore[no-untyped-def]
    bare = pixels(page)
    with page.expect_response("**/proposals?*") as exchange:
        page.get_by_label("Proposals", exact=True).check(force=True)
    stage_counts = exchange.value.json()["stage_counts"]
    page.locator("#stage-counts table").wait_for()
    assert page.locator("#stage-counts tbody tr").first.locator("td").count() == len(stage_counts)
    assert page.locator("#count-value").inner_text() == "30"
    for box in page.locator("#levels input").all():
        box.uncheck()
    assert page.locator("#count-value").inner_text() == "0"
    page.get_by_label("Objectness", exact=True).check(force=True)
    assert np.abs(pixels(page) - bare).mean() > 10  # the map lies over the image


@browser_only
def test_a_drawn_box_is_explained(page) -> None:  # type: ignore[no-untyped-def]
    page.get_by_label("Missed?", exact=True).check(force=True)
    frame = page.locator("#canvas").bounding_box()
    with page.expect_response("**/explain?*") as exchange:
        page.mouse.move(frame["x"] + 5, frame["y"] + 5)
        page.mouse.down()
        page.mouse.move(frame["x"] + frame["width"] * 0.9, frame["y"] + frame["height"] * 0.95, steps=4)
        page.mouse.up()
    (explanation,) = exchange.value.json()["explanations"]
    page.locator(f"[data-stage='{explanation['stage']}']").wait_for()
    assert explanation["stage"] == "found"
    assert explanation["sentence"] in page.locator("#explanation").inner_text()
    # Without a pointer: another class, and the box by its corners.
    with page.expect_response("**/explain?*") as exchange:
        page.locator("#label").select_option("dog")
    assert exchange.value.json()["explanations"][0]["stage"] != "found"
    page.get_by_text("Type the box instead").click()
    with page.expect_response("**/explain?*") as exchange:
        page.get_by_role("button", name="Ask").click()
    assert exchange.value.ok


@browser_only
def test_an_upload_and_a_broken_file(page, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    good, broken = tmp_path / "upright.png", tmp_path / "broken.jpg"
    Image.open(EXAMPLES / "chelsea.jpg").rotate(180).save(good)
    broken.write_bytes((EXAMPLES / "chelsea.jpg").read_bytes()[:3000])
    page.locator("#file").set_input_files(good)
    page.locator("canvas[aria-label^='upright.png, 451 by 300']").wait_for()
    page.locator("#file").set_input_files(broken)
    page.locator("#problem:visible").wait_for()
    assert len(page.locator("#problem").inner_text()) > 20
    # The browser itself reports the failed request in one line.
    assert len(page.console_messages) == 1
    assert "400" in page.console_messages.pop()
