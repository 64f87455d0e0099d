"""The demo's page in a browser: photographs in, a scene on the canvas, sliders, a download."""

import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

ROOT = Path(__file__).parents[1]
ROOM = sorted((ROOT / "docs/images/example_room").glob("*.jpg"))
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Without a GPU, WebGL in software.
FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here; scripts/browser.sh installs it"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of ``python demo.py``; its folder is empty once it has ended."""
    folder = tmp_path_factory.mktemp("demo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "demo.py", "--device", "cpu", "--server_port", str(port)]
    log = folder.parent / "demo.log"
    with log.open("w") as written:
        server = subprocess.Popen(
            [*command, "--tmp_dir", str(folder)], cwd=ROOT, stdout=written, stderr=written
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/", server, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        status = server.wait(timeout=20)
    assert status == 0, log.read_text()
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def page(address: str) -> Iterator["playwright.Page"]:
    """A window that reaches the server and nothing else."""
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=BROWSER, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.outside = []

        def only_here(route):
            if route.request.url.startswith((address, "data:", "blob:")):
                route.continue_()
            else:
                page.outside.append(route.request.url)
                route.abort()

        page.route("**/*", only_here)
        page.goto(address)
        page.wait_for_selector("#run", timeout=30_000)
        yield page
        browser.close()


def test_photographs_to_a_scene_its_sliders_and_files(page, tmp_path):
    scenes = []
    page.on("response", lambda reply: scenes.append(reply) if ".glb" in reply.url else None)
    page.set_input_files("#images input[type=file]", [str(path) for path in ROOM[:2]])
    page.get_by_text(ROOM[1].stem).first.wait_for()
    page.click("#run")
    page.wait_for_selector("#report p", timeout=60_000)
    _until(page, lambda: _variety(page) > 5)
    assert "2 images" in page.inner_text("#report")
    assert page.locator("#gallery img").count() >= 2

    first = len(scenes[-1].body())
    page.locator("#hide input[type=number]").fill("80")
    page.locator("#hide input[type=number]").press("Enter")
    _until(page, lambda: len(scenes) > 1)
    assert len(scenes[-1].body()) < 0.5 * first
    shown, known = (int(n.replace(",", "")) for n in page.inner_text("#report").split()[2:5:2])
    assert abs(shown - 0.2 * known) <= 0.01 * known

    page.get_by_role("tab", name="Downloads").click()
    page.click("#prepare")
    link = page.locator("#files a[download='points.ply'], #files a[href$='points.ply']").first
    link.wait_for(timeout=30_000)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "points.ply")
    cloud = trimesh.load(tmp_path / "points.ply")
    assert len(cloud.vertices) == shown and np.isfinite(cloud.vertices).all()
    assert page.outside == []


def test_one_photograph_gives_a_message(page):
    page.reload()
    page.wait_for_selector("#run", timeout=30_000)
    page.set_input_files("#images input[type=file]", str(ROOM[0]))
    page.get_by_text(ROOM[0].stem).first.wait_for()
    page.click("#run")
    toast = page.get_by_test_id("toast-body")
    toast.wait_for(timeout=20_000)
    assert "two" in toast.inner_text() and "/" not in toast.inner_text()


def test_settings_show_where_they_apply(page):
    page.reload()
    page.wait_for_selector("#run", timeout=30_000)
    shown, parts = [], ("#window", "#closed", "#reference")
    for graph in ("neighbours in a sequence", "one with all others", "every pair"):
        page.locator("#graph input").click()
        page.get_by_role("option", name=graph).click()
        page.wait_for_timeout(700)
        shown.append([page.locator(part).is_visible() for part in parts])
    assert shown == [[True, True, False], [False, False, True], [False, False, False]]


def _variety(page: "playwright.Page") -> float:
    """Standard deviation of the canvas's grey levels, without the buttons above it."""
    picture = Image.open(io.BytesIO(page.locator("#scene canvas").screenshot()))
    return float(np.asarray(picture.convert("L"))[60:].std())


def _until(page: "playwright.Page", holds, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        page.wait_for_timeout(300)


def _wait_for(address: str, server: subprocess.Popen, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        assert server.poll() is None and time.monotonic() < end, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
