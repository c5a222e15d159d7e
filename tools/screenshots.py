"""Take the screenshots of the page in docs/images, with Chromium, of a service that runs already.

    frcnn serve --device cpu --precision fp32 &
    python -m tools.screenshots http://127.0.0.1:8000

The page shows timings, so that no two runs give the same files.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parents[1] / "docs/images"
VIEWPORT = {"width": 1280, "height": 760}
# The camera in the example image, in fractions of the canvas: left, top, right, bottom.
CAMERA = (0.52, 0.25, 0.66, 0.5)


def main(url: str) -> None:
    """Write one JPEG for each view of the page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no Chromium on the PATH; install one.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=VIEWPORT)
        page.goto(url)
        page.locator("#detections button").first.click()
        _save(page, "detections")
        page.get_by_label("Proposals", exact=True).check(force=True)
        page.locator("#stage-counts table").wait_for()
        _save(page, "proposals")
        page.get_by_label("Objectness", exact=True).check(force=True)
        _save(page, "objectness")
        dark = browser.new_page(viewport=VIEWPORT, color_scheme="dark")
        dark.goto(url)
        _explain_the_camera(dark)
        _save(dark, "missed-dark")
        browser.close()


def _explain_the_camera(page: Page) -> None:
    page.locator("[data-example='camera.jpg']").click()
    page.locator("canvas[aria-label^='camera.jpg']").wait_for()
    page.get_by_label("Missed?", exact=True).check(force=True)
    frame = page.locator("#canvas").bounding_box()
    assert frame is not None
    left, top, right, bottom = CAMERA
    page.mouse.move(frame["x"] + left * frame["width"], frame["y"] + top * frame["height"])
    page.mouse.down()
    page.mouse.move(frame["x"] + right * frame["width"], frame["y"] + bottom * frame["height"], steps=4)
    page.mouse.up()
    page.locator("[data-stage]").first.wait_for()


def _save(page: Page, name: str) -> None:
    page.wait_for_timeout(500)  # until images and animations are drawn
    page.screenshot(path=IMAGES / f"page-{name}.jpg", type="jpeg", quality=80)


if __name__ == "__main__":
    main(sys.argv[1])
