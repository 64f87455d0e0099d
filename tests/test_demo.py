"""``demo.py``: its files without a browser, what its server takes and refuses."""

import argparse
import io
import json
import logging
import socket
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
import torch
import trimesh

import demo
from dust3r.demo import server, weights
from dust3r.demo.storage import Workspace
from dust3r.training import checkpoint
from dust3r.utils.spec import MODELS, build
from mast3r.cloud_opt import forward

ROOM = sorted((Path(__file__).parents[1] / "docs/images/example_room").glob("*.jpg"))


class TestWithoutBrowser:
    def test_writes_exports_and_pictures(self, tmp_path, capsys):
        out = tmp_path / "out"
        given = ["--images", *ROOM[:2], "--output_dir", out, "--niter", 10, "--device", "cpu"]
        assert demo.main([str(part) for part in [*given, "--hide", 20, "--silent"]]) == 0
        listed = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert listed and all(path.exists() for path in listed)
        cloud = trimesh.load(out / "points.ply")
        assert len(cloud.vertices) > 20_000 and np.isfinite(cloud.vertices).all()
        for name in ("overview.png", "pictures/picture_000.png", "pictures/picture_001.png"):
            assert cv2.imread(str(out / name)).std() > 10

    def test_models_with_a_variance_give_deviations_and_may_weigh_by_them(self, tmp_path, caplog):
        small = checkpoint.load_file(weights.FOLDER / "rooms_small.safetensors")
        spec = small["args"].model.replace("head_type='dpt'", "head_type='dpt_uq'")
        torch.manual_seed(0)
        net = build(spec, MODELS)
        checkpoint.load_state_dict(net, small["model"])
        assert net.states_variance
        saved = {"model": net.state_dict(), "args": argparse.Namespace(model=spec)}
        checkpoint.save(tmp_path / "uq.pth", saved)
        given = ["--images", *ROOM[:2], "--niter", 10, "--silent", "--weights_by", "uncertainty"]
        given = [str(part) for part in given]
        out = str(tmp_path / "out")
        assert demo.main([*given, "--output_dir", out, "--weights", str(tmp_path / "uq.pth")]) == 0
        maps = np.load(next((tmp_path / "out/maps").glob("*.npz")))
        assert (maps["sigma"][maps["valid"]] > 0).all()

        small = str(weights.FOLDER / "rooms_small.safetensors")
        assert demo.main([*given, "--output_dir", f"{out}2", "--weights", small]) == 2
        assert "needs a model that states a variance" in caplog.text

    @pytest.mark.parametrize(
        ("images", "expected"), [(["gone.jpg"], "gone.jpg"), ([ROOM[0]], "two")]
    )
    def test_images_that_do_not_do_are_named(self, tmp_path, caplog, images, expected):
        given = ["--images", *images, "--output_dir", tmp_path / "out", "--silent"]
        assert demo.main([str(part) for part in given]) == 2
        assert expected in caplog.text
        assert not (tmp_path / "out").exists()


UNTRAINED = (
    "AsymmetricMASt3R(img_size=(224, 224), head_type='catmlp+dpt', output_mode='pts3d+desc8', "
    "two_confs=True, enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, "
    "dec_depth=4, dec_num_heads=2, dpt_dim=8)"
)


class Visitor:
    """A client of the server that speaks its protocol by hand, as an attacker would."""

    def __init__(self, address: str, session: str):
        self.http = httpx.Client(base_url=f"{address}gradio_api/", timeout=120)
        self.session = session
        config = httpx.get(f"{address}config").json()
        self.functions = {d["api_name"]: d["id"] for d in config["dependencies"]}

    def upload(self, name: str, content: bytes) -> dict:
        path = self.http.post("upload", files={"files": (name, content)}).json()[0]
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    def call(self, function: str, *data: object) -> dict:
        """The last message of a call: ``success``, and ``output`` with ``data`` or ``error``."""
        call = {
            "fn_index": self.functions[function],
            "data": data,
            "session_hash": self.session,
        }
        self.http.post("queue/join", json=call).raise_for_status()
        with self.http.stream("GET", f"queue/data?session_hash={self.session}") as events:
            for line in events.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {}
                if message.get("msg") == "process_completed":
                    return message
        raise AssertionError("no answer")

    def reconstruct(
        self, *images: object, masks: list | None = None, way: str = "dense", **changed: object
    ) -> dict:
        settings = SETTINGS[way] | changed
        return self.call(
            f"reconstruct_{way}", None, list(images), masks, "keep", *settings.values(), *LOOK
        )


# Values of the page's components in their order.
LOOK = (0, 10, 0.05, "points", "rgb")
PAIRS = {"graph": "complete", "window": 3, "closed": False, "reference": 1, "keys": 10, "alike": 5}
PAIRS |= {"shared_intrinsics": False}
COMMON = {"sky": False, "clean": True}
SETTINGS = {
    "dense": PAIRS | {"niter": 10, "weights_by": "confidence"} | COMMON | {"check_overlap": True},
    "sparse": PAIRS | {"depth": "network", "opt_depth": True, "matching_conf_thr": 0} | COMMON,
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Workspace, Any]]:
    """Address, folders and page of a server with the small model."""
    with server.open_workspace(tmp_path_factory.mktemp("demo")) as workspace:
        from dust3r.demo.events import Events

        model, name = weights.load(None, None)
        page = server.launch(Events(model, name, 224, 2, workspace), demo.METHODS)
        yield page.local_url, workspace, page
        page.close(verbose=False)


@pytest.fixture(scope="module")
def matching(running) -> Iterator[tuple[str, Workspace, Any]]:
    """The same with an untrained model that has descriptors."""
    from dust3r.demo.events import Events

    torch.manual_seed(0)
    page = server.launch(
        Events(build(UNTRAINED, MODELS).eval(), "untrained", 224, 2, running[1]), demo.METHODS
    )
    yield page.local_url, running[1], page
    page.close(verbose=False)


@pytest.fixture
def visitor(running, request: pytest.FixtureRequest) -> Visitor:
    return Visitor(running[0], f"visitor{hash(request.node.name)}")


class TestServer:
    def test_photographs_become_a_scene_to_look_at_and_files(self, running):
        visitor = Visitor(running[0], "photographer")
        images = [visitor.upload("../../x.jpg", ROOM[0].read_bytes())]
        images += [visitor.upload("<script>.jpg", ROOM[1].read_bytes())]
        done = visitor.reconstruct(*images)
        assert done["success"], done
        _, scene, report, gallery, *_ = done["output"]["data"]
        assert "2 images" in report and len(gallery) == 2
        first = visitor.http.get(f"file={scene['path']}").content
        assert len(trimesh.load(io.BytesIO(first), file_type="glb").geometry) > 0

        hidden = visitor.call("show", None, 0, 80, 0.05, "points", "uncertainty")
        second = visitor.http.get(f"file={hidden['output']['data'][0]['path']}").content
        assert len(second) < len(first)

        files = visitor.call("export", None, *LOOK)["output"]["data"][0]
        paths = {Path(file["path"]).name: Path(file["path"]) for file in files}
        expected = ["points.ply", "scene.glb", "colmap.zip", "maps.zip", "nerfstudio.zip"]
        assert sorted(paths) == sorted([*expected, "names.json"])
        for name in expected[2:]:
            inside = zipfile.ZipFile(paths[name]).namelist()
            assert not any("script" in member or ".." in member for member in inside)
        given = json.loads(paths["names.json"].read_text())
        assert list(given) == ["image_000.jpg", "image_001.jpg"]
        assert not any(set("<>/") & set(name) for name in given.values())

    def test_sessions_do_not_see_each_other(self, running):
        owner, other = Visitor(running[0], "owner"), Visitor(running[0], "other")
        done = owner.reconstruct(*(owner.upload(p.name, p.read_bytes()) for p in ROOM[:2]))
        assert done["success"]
        assert other.call("show", None, *LOOK)["output"]["data"][0] is None
        refused = other.call("export", None, *LOOK)
        assert not refused["success"] and "no reconstruction yet" in refused["output"]["error"]

    def test_files_go_with_the_next_reconstruction_and_with_the_session(self, running):
        address, workspace, page = running
        visitor, before = Visitor(address, "brief"), set(workspace.served.iterdir())
        images = [visitor.upload(f"brief{p.name}", p.read_bytes()) for p in ROOM[:2]]
        uploads = {Path(image["path"]).parent for image in images}
        for _ in range(2):
            done = visitor.reconstruct(*images)
            folder = Path(done["output"]["data"][1]["path"]).parent
            made = set(workspace.served.iterdir()) - before - uploads
            assert {path for path in made if path.is_dir()} == {folder}
        assert not visitor.call("export", None, *LOOK)["output"].get("error")
        page.app.state_holder.delete_state("brief")
        assert not folder.exists() and not (workspace.work / folder.name).exists()

    def test_masked_pixels_are_no_points(self, visitor):
        images = [visitor.upload(f"{n}.jpg", p.read_bytes()) for n, p in enumerate(ROOM[:2])]
        mask = np.zeros((336, 448), np.uint8)
        mask[:168] = 255
        masks = [visitor.upload("1.png", cv2.imencode(".png", mask)[1].tobytes())]
        done = visitor.reconstruct(*images, masks=masks)
        known = int(done["output"]["data"][2].split()[4].replace(",", ""))
        assert 224 * 224 < known <= 1.5 * 224 * 224
        refused = visitor.reconstruct(*images, masks=[visitor.upload("7.png", b"")])
        assert "7.png is no image" in refused["output"]["error"]

    def test_the_state_cannot_be_sent(self, visitor):
        refused = visitor.call("export", {"session": {"served": "/etc"}}, *LOOK)
        assert not refused["success"] and "no reconstruction yet" in refused["output"]["error"]

    def test_what_is_no_image_gives_a_message_with_its_name(self, visitor):
        images = [visitor.upload("notes.jpg", b"words"), visitor.upload("b.jpg", b"more")]
        refused = visitor.reconstruct(*images)
        assert not refused["success"]
        assert "notes.jpg is no image that can be read" in refused["output"]["error"]

    def test_one_image_is_too_few(self, visitor, running):
        refused = visitor.reconstruct(visitor.upload("a.jpg", ROOM[0].read_bytes()))
        assert not refused["success"] and "two" in refused["output"]["error"]
        assert str(running[1].root) not in json.dumps(refused)

    @pytest.mark.parametrize("path", ["/etc/passwd", "UPLOADS/../../../../../etc/passwd", "CODE"])
    def test_files_of_the_server_are_not_read(self, visitor, running, path):
        path = path.replace("UPLOADS", str(running[1].served)).replace("CODE", demo.__file__)
        sent = {"path": path, "meta": {"_type": "gradio.FileData"}}
        refused = visitor.reconstruct(sent, sent)
        assert not refused["success"]
        assert visitor.http.get(f"file={path}").status_code in (403, 404)

    def test_addresses_are_not_fetched(self, visitor):
        with socket.create_server(("127.0.0.1", 0)) as asked:
            asked.settimeout(0.2)
            url = f"http://127.0.0.1:{asked.getsockname()[1]}/a.jpg"
            sent = {"path": url, "url": url, "meta": {"_type": "gradio.FileData"}}
            refused = visitor.reconstruct(sent, sent)
            with pytest.raises(TimeoutError):
                asked.accept()
        assert not refused["success"] and "upload the file" in refused["output"]["error"]

    @pytest.mark.parametrize("way", ["file=", "file/", "proxy=", "file=%20"])
    def test_the_server_is_no_relay(self, visitor, way):
        for scheme in ("http", "HTTPS", "ftp"):
            answer = visitor.http.get(f"{way}{scheme}://example.com/a.jpg")
            assert (answer.status_code, answer.text) == (403, "addresses are not taken")

    def test_functions_are_called_through_the_queue_alone(self, visitor):
        answer = visitor.http.post("run/example", json={"data": []})
        assert answer.status_code in (401, 403, 404)

    def test_copies_of_uploads_are_not_served(self, visitor, running):
        inner = running[1].work / "example.jpg"
        inner.write_bytes(ROOM[0].read_bytes())
        assert visitor.http.get(f"file={inner}").status_code == 403

    def test_unexpected_errors_keep_their_details(self, visitor, caplog, monkeypatch):
        def broken(*args, **kwargs):
            raise RuntimeError("secret of /srv/model")

        monkeypatch.setattr("dust3r.demo.events.load_images", broken)
        with caplog.at_level(logging.ERROR):
            images = [visitor.upload(p.name, p.read_bytes()) for p in ROOM[:2]]
            refused = visitor.reconstruct(*images)
        assert "Something went wrong on the server" in refused["output"]["error"]
        assert "secret" not in json.dumps(refused) and "secret of" in caplog.text

    @pytest.mark.parametrize(
        "changed", [{"niter": 10**9}, {"graph": "nonsense"}, {"graph": "retrieval"}, {"window": []}]
    )
    def test_settings_out_of_range_are_refused(self, visitor, changed):
        images = [visitor.upload(p.name, p.read_bytes()) for p in ROOM[:2]]
        assert not visitor.reconstruct(*images, **changed)["success"]

    def test_any_image_can_be_the_reference(self, visitor):
        images = [visitor.upload(p.name, p.read_bytes()) for p in ROOM]
        visitor.call("count", images)
        assert visitor.reconstruct(*images, graph="oneref", reference=3)["success"]

    def test_the_page_asks_nobody_else(self, running):
        page = httpx.get(running[0]).text
        assert "fonts.googleapis" not in page.replace("preconnect", "")


class TestSparseOnServer:
    def test_images_that_do_not_match_give_a_message_in_their_senders_words(self, matching):
        visitor = Visitor(matching[0], "strangers")
        images = [visitor.upload(f"{n}.jpg", p.read_bytes()) for n, p in enumerate(ROOM[:2])]
        refused = visitor.reconstruct(*images, way="sparse")
        assert "no two images share enough mutual matches" in refused["output"]["error"]
        assert str(matching[1].root) not in json.dumps(refused)

    def test_the_network_runs_once_on_the_same_images(self, matching, monkeypatch):
        passes = []
        for_each_batch = forward.for_each_batch
        monkeypatch.setattr(
            forward, "for_each_batch", lambda *a, **k: passes.append(a) or for_each_batch(*a, **k)
        )
        for name in ("first", "second"):
            visitor = Visitor(matching[0], name)
            images = [visitor.upload(f"{name}{p.name}", p.read_bytes()) for p in ROOM[1:3]]
            visitor.reconstruct(*images, way="sparse", depth="tsdf", graph="swin", window=1)
        assert len(passes) == 1

    def test_what_the_network_said_is_not_served(self, matching):
        visitor = Visitor(matching[0], "curious")
        images = [visitor.upload(p.name, p.read_bytes()) for p in ROOM[:2]]
        visitor.reconstruct(*images, way="sparse")
        kept = list(matching[1].cache.rglob("*.safetensors"))
        assert kept
        assert visitor.http.get(f"file={kept[0]}").status_code == 403

    @pytest.mark.parametrize(
        "changed", [{"depth": "guessed"}, {"matching_conf_thr": -1}, {"alike": 1000}]
    )
    def test_settings_out_of_range_are_refused(self, matching, changed):
        visitor = Visitor(matching[0], "breaker")
        images = [visitor.upload(p.name, p.read_bytes()) for p in ROOM[:2]]
        refused = visitor.reconstruct(*images, way="sparse", **changed)
        assert not refused["success"] and "mutual matches" not in refused["output"]["error"]

    def test_without_descriptors_the_tab_says_which_weights_to_take(self, running, matching):
        with_hint, without = (httpx.get(f"{one[0]}config").text for one in (running, matching))
        assert "--model_name MASt3R_" in with_hint and "--model_name" not in without
        assert "reconstruct_sparse" not in with_hint and "reconstruct_sparse" in without
