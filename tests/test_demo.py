"""``demo.py``: its arguments, its files without a browser, what its server takes and refuses."""

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
from dust3r.demo import arguments, server, weights
from dust3r.demo.pictures import write_gallery
from dust3r.demo.storage import Workspace
from dust3r.reconstruction import Reconstruction, Source
from dust3r.training import checkpoint
from dust3r.utils.spec import MODELS, build

ROOM = sorted((Path(__file__).parents[1] / "docs/images/example_room").glob("*.jpg"))


def rejected(capsys, *given: str) -> str:
    with pytest.raises(SystemExit) as caught:
        arguments.parse([str(part) for part in given])
    assert caught.value.code == 2
    return capsys.readouterr().err


class TestArguments:
    def test_defaults_serve_this_machine_alone(self):
        args = arguments.parse([])
        assert (args.server_name, args.server_port, args.share) == ("127.0.0.1", None, False)
        assert (args.scene_graph, args.niter, args.weights_by) == ("complete", 300, "confidence")

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (("--weights", "a.pth", "--model_name", "b"), "not allowed with argument"),
            (("--images", "a.jpg"), "--images needs --output_dir"),
            (("--output_dir", "out"), "--output_dir has a meaning with --images only"),
            (("--hide", "20"), "--hide has a meaning with --images only"),
            (
                ("--images", "a", "--output_dir", "b", "--share"),
                "--share has a meaning with a page",
            ),
            (("--server_port", "70000"), "70000 is no port"),
            (("--images", "a", "--output_dir", "b", "--hide", "120"), "120 is no percentage"),
            (("--image_size", "0"), "0 is not 1 or more"),
        ],
    )
    def test_what_does_not_fit_is_said(self, capsys, given, expected):
        assert expected in rejected(capsys, *given)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            (("--weights", "gone.pth"), "there is no weights file gone.pth"),
            (("--device", "nonsense"), "--device nonsense cannot be used here"),
            (("--server_name", "256.1.1.1"), "cannot listen on --server_name 256.1.1.1"),
        ],
    )
    def test_what_is_not_there_ends_with_a_message(self, caplog, given, expected):
        assert demo.main(list(given)) == 2
        assert expected in caplog.text

    def test_a_port_in_use_is_named(self, caplog):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert demo.main(["--server_port", str(port)]) == 2
        assert f"cannot listen on port {port}" in caplog.text


class TestWeights:
    @pytest.mark.parametrize("name", ["AsymmetricCroCo3DStereo", "AsymmetricMASt3R"])
    def test_published_folders_name_their_kind_by_their_settings(self, tmp_path, name):
        sizes = {"enc_embed_dim": 24, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 24}
        sizes |= {"dec_depth": 4, "dec_num_heads": 2, "dpt_dim": 8, "img_size": (512, 512)}
        if name == "AsymmetricMASt3R":
            sizes |= {"head_type": "catmlp+dpt", "output_mode": "pts3d+desc24"}
        MODELS.get(name)(**sizes).save_pretrained(tmp_path / "published")
        for given in ((tmp_path / "published", None), (None, str(tmp_path / "published"))):
            model, shown = weights.load(*given)
            assert type(model).__name__ == name and shown == "published"
            assert not model.training and not model.landscape_only
            assert weights.native_size(model) == 512

    def test_the_shipped_model_is_of_224_pixels(self):
        model, name = weights.load(None, None)
        assert name.startswith("rooms_small") and weights.native_size(model) == 224

    def test_names_of_the_hub_are_asked_for_there(self, monkeypatch):
        asked = []

        def hub(repository: str, file: str) -> str:
            asked.append(repository)
            raise OSError("no connection")

        monkeypatch.setattr(weights, "hf_hub_download", hub)
        for name in ("DUSt3R_512", "someone/else"):
            with pytest.raises(FileNotFoundError, match="the Hugging Face hub gave none"):
                weights.load(None, name)
        assert asked == ["naver/DUSt3R_512", "someone/else"]


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


def test_pictures_show_deviations_where_there_are_some(tmp_path):
    depths = tuple(np.random.default_rng(n).uniform(1, 3, (20, 30)) for n in range(2))
    told = {
        "sources": tuple(Source(f"{n}.jpg", None, (30, 20), np.eye(3)) for n in range(2)),
        "images": tuple(np.full((20, 30, 3), 0.5, np.float32) for _ in range(2)),
        "poses": np.stack([np.eye(4)] * 2),
        "intrinsics": np.stack([np.diag([30.0, 30, 1])] * 2),
        "depthmaps": depths,
        "confidences": depths,
        "valid": tuple(depth > 1.5 for depth in depths),
    }
    shapes = []
    for deviations in (None, depths):
        paths = write_gallery(Reconstruction(**told, deviations=deviations), tmp_path, ["$a", "b"])
        assert [path.name for path in paths] == ["picture_000.png", "picture_001.png"]
        height, width = cv2.imread(str(paths[0])).shape[:2]
        shapes.append(width / height)
    assert shapes[1] > 1.2 * shapes[0]


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

    def reconstruct(self, *images: object, masks: list | None = None) -> dict:
        settings = ("complete", 3, False, 1, 10, False, "confidence", "keep", False, True, True)
        return self.call("reconstruct", None, list(images), masks, *settings, *LOOK)


# Values of ``events.Look`` in their order.
LOOK = (0, 10, 0.05, "points", "rgb")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Workspace, Any]]:
    """Address, folders and page of a server with the small model."""
    with server.open_workspace(tmp_path_factory.mktemp("demo")) as workspace:
        from dust3r.demo.events import Events

        model, name = weights.load(None, None)
        page = server.launch(Events(model, name, 224, 2, workspace))
        yield page.local_url, workspace, page
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

    @pytest.mark.parametrize(("value", "place"), [(10**9, 4), ("nonsense", 0), ([], 1)])
    def test_settings_out_of_range_are_refused(self, visitor, value, place):
        settings = ["complete", 3, False, 1, 10, False, "confidence", "keep", False, True, True]
        settings[place] = value
        images = [visitor.upload(p.name, p.read_bytes()) for p in ROOM[:2]]
        assert not visitor.call("reconstruct", None, images, None, *settings, *LOOK)["success"]

    def test_any_image_can_be_the_reference(self, visitor):
        images = [visitor.upload(p.name, p.read_bytes()) for p in ROOM]
        visitor.call("count", images)
        settings = ("oneref", 3, False, 3, 10, False, "confidence", "keep", False, True, True)
        assert visitor.call("reconstruct", None, images, None, *settings, *LOOK)["success"]

    def test_the_page_asks_nobody_else(self, running):
        page = httpx.get(running[0]).text
        assert "fonts.googleapis" not in page.replace("preconnect", "")
