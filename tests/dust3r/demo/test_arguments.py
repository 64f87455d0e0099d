"""What the arguments of ``demo.py`` mean, and which do not go together."""

import socket
from pathlib import Path

import pytest

import demo
from dust3r.demo import arguments
from dust3r.demo.dense import DenseAlignment
from mast3r.demo.sparse import SparseAlignment

FILES = ("--images", "a", "--output_dir", "b")
SPARSE = (*FILES, "--alignment", "sparse")


def parsed(*given: str):
    return arguments.parse(demo.METHODS, [*given])


def rejected(capsys, *given: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parsed(*given)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_defaults_serve_this_machine_alone():
    args = parsed()
    assert (args.server_name, args.server_port, args.share) == ("127.0.0.1", None, False)
    assert args.images is None


def test_files_are_aligned_densely_by_default():
    args = parsed(*FILES)
    assert args.alignment == DenseAlignment() and (args.masked, args.hide) == ("keep", 0)
    given = ("--niter", "7", "--keep_all", "--no_clean", "--sky", "--weights_by", "uncertainty")
    assert parsed(*FILES, *given).alignment == DenseAlignment(
        niter=7, check_overlap=False, clean=False, sky=True, weights_by="uncertainty"
    )


def test_settings_of_sparse_alignment():
    given = ("--depth", "tsdf", "--matching_conf_thr", "2", "--no_opt_depth", "--cache_dir", "c")
    graph = ("--scene_graph", "retrieval-20-10", "--shared_intrinsics")
    assert parsed(*SPARSE, *given, *graph).alignment == SparseAlignment(
        scene_graph="retrieval-20-10",
        shared_intrinsics=True,
        depth="tsdf",
        matching_conf_thr=2.0,
        opt_depth=False,
        cache_dir=Path("c"),
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--weights", "a.pth", "--model_name", "b"), "not allowed with argument"),
        (("--images", "a.jpg"), "--images needs --output_dir"),
        (("--output_dir", "out"), "--output_dir has a meaning with --images only"),
        (("--hide", "20"), "--hide has a meaning with --images only"),
        (("--keep_all",), "--keep_all has a meaning with --images only"),
        (("--no_clean",), "--no_clean has a meaning with --images only"),
        (("--alignment", "sparse"), "--alignment has a meaning with --images only"),
        ((*FILES, "--share"), "--share has a meaning with a page"),
        ((*FILES, "--hide", "120"), "120 is no percentage"),
        ((*FILES, "--no_opt_depth"), "--no_opt_depth has a meaning with --alignment sparse only"),
        ((*SPARSE, "--keep_all"), "--keep_all has a meaning with --alignment dense only"),
        ((*SPARSE, "--depth", "guessed"), "invalid choice: 'guessed'"),
        ((*FILES, "--scene_graph", "retrieval-9"), "retrieval does not go with --alignment dense"),
        (("--server_port", "70000"), "70000 is no port"),
        (("--image_size", "0"), "0 is not 1 or more"),
    ],
)
def test_what_does_not_fit_is_said(capsys, given, expected):
    assert expected in rejected(capsys, *given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--weights", "gone.pth"), "there is no weights file gone.pth"),
        (("--device", "nonsense"), "--device nonsense cannot be used here"),
        (("--server_name", "256.1.1.1"), "cannot listen on --server_name 256.1.1.1"),
    ],
)
def test_what_is_not_there_ends_with_a_message(caplog, given, expected):
    assert demo.main(list(given)) == 2
    assert expected in caplog.text


def test_a_port_in_use_is_named(caplog):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert demo.main(["--server_port", str(port)]) == 2
    assert f"cannot listen on port {port}" in caplog.text
