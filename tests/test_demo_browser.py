"""The demo's page in a browser: photographs in, a scene on the canvas, sliders, a download."""

import argparse
import io
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.training import checkpoint
from dust3r.utils.spec import MODELS, build

ROOT = Path(__file__).parents[1]
ROOM = sorted((ROOT / "docs/images/example_room").glob("*.jpg"))
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
UNTRAINED = (
    "AsymmetricMASt3R(img_size=(224, 224), head_type='catmlp+dpt', output_mode='pts3d+desc8', "
    "two_confs=True, enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, "
    "dec_depth=4, dec_num_heads=2, dpt_dim=8)"
)
# Without a GPU, WebGL in software.
FLAGS = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium here; scripts/browser.sh installs it"
)


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(
    tmp_path_factory: pytest.TempPathFactory, browser: "playwright.Browser"
) -> Iterator["playwright.Page"]:
    """A window on the demo with the project's own small model."""
    with serve(tmp_path_factory.mktemp("demo")) as address, window(browser, address) as page:
        yield page


@pytest.fixture(scope="module")
def matching(
    tmp_path_factory: pytest.TempPathFactory, browser: "playwright.Browser"
) -> Iterator["playwright.Page"]:
    """The same with a model that has descriptors, and is untrained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.pth"
    saved = {"model": build(UNTRAINED, MODELS).state_dict()}
    checkpoint.save(path, saved | {"args": argparse.Namespace(model=UNTRAINED)})
    folder = tmp_path_factory.mktemp("matching")
    with serve(folder, "--weights", str(path)) as address, window(browser, address) as page:
        yield page


@contextmanager
def serve(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of ``python demo.py``; its folder is empty once it has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "demo.py", "--device", "cpu", "--server_port", str(port)]
    log = folder.with_suffix(".log")
    with log.open("w") as written:
        server = subprocess.Popen(
            [*command, "--tmp_dir", str(folder), *arguments],
            cwd=ROOT,
            stdout=written,
            stderr=written,
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/", server, log)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        status = server.wait(timeout=20)
    assert status == 0, log.read_text()
    assert list(folder.iterdir()) == []


@contextmanager
def window(browser: "playwright.Browser", address: str) -> Iterator["playwright.Page"]:
    """A window that reaches the server and nothing else."""
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
    page.wait_for_selector("#run_dense", timeout=30_000)
    yield page
    page.close()


def test_photographs_to_a_scene_its_sliders_and_files(page, tmp_path):
    scenes = []
    page.on("response", lambda reply: scenes.append(reply) if ".glb" in reply.url else None)
    page.set_input_files("#images input[type=file]", [str(path) for path in ROOM[:2]])
    page.get_by_text(ROOM[1].stem).first.wait_for()
    page.click("#run_dense")
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
    page.wait_for_selector("#run_dense", timeout=30_000)
    page.set_input_files("#images input[type=file]", str(ROOM[0]))
    page.get_by_text(ROOM[0].stem).first.wait_for()
    page.click("#run_dense")
    toast = page.get_by_test_id("toast-body")
    toast.wait_for(timeout=20_000)
    assert "two" in toast.inner_text() and "/" not in toast.inner_text()


def test_settings_show_where_they_apply(page):
    page.reload()
    page.wait_for_selector("#run_dense", timeout=30_000)
    shown, parts = [], ("#window_dense", "#closed_dense", "#reference_dense")
    for graph in ("neighbours in a sequence", "one with all others", "every pair"):
        page.locator("#graph_dense input").click()
        page.get_by_role("option", name=graph).click()
        page.wait_for_timeout(700)
        shown.append([page.locator(part).is_visible() for part in parts])
    assert shown == [[True, True, False], [False, False, True], [False, False, False]]


def test_without_descriptors_the_tab_says_which_weights_to_take(page):
    page.reload()
    page.get_by_role("tab", name="Sparse").click()
    hint = page.locator("#obstacle_sparse")
    hint.wait_for()
    assert "no descriptors" in hint.inner_text() and "--model_name MASt3R" in hint.inner_text()
    assert not page.locator("#run_dense").is_visible() and not page.locator("#run_sparse").count()


def test_the_open_tab_is_what_runs_and_says_that_images_do_not_match(matching):
    page = matching
    page.get_by_role("tab", name="Sparse").click()
    page.locator("#graph_sparse input").click()
    page.get_by_role("option", name="most alike images").click()
    page.locator("#alike_sparse").wait_for()
    assert page.locator("#keys_sparse").is_visible() and page.locator("#depth").is_visible()
    page.set_input_files("#images input[type=file]", [str(path) for path in ROOM[:2]])
    page.get_by_text(ROOM[1].stem).first.wait_for()
    page.click("#run_sparse")
    toast = page.get_by_test_id("toast-body")
    toast.wait_for(timeout=60_000)
    assert "no two images share enough mutual matches" in toast.inner_text()
    assert page.outside == []


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
