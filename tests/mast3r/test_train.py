"""``train.py`` with descriptors: the published criterion, data and model strings as they are."""

import json
import math

import pytest
import torch

import mast3r.losses
import mast3r.model  # noqa: F401  (both register what specifications name)
from dust3r.training import checkpoint
from dust3r.training.cli import main
from dust3r.utils.spec import MODELS, build
from mast3r.model import AsymmetricMASt3R

CRITERION = (
    "ConfLoss(Regr3D(L21, norm_mode='?avg_dis'), alpha=0.2) + 0.075*ConfMatchingLoss("
    "MatchingLoss(InfoNCE(mode='proper', temperature=0.05), negatives_padding=0, blocksize=8192), "
    "alpha=10.0, confmode='mean')"
)
TEST_CRITERION = (
    "Regr3D(L21, norm_mode='?avg_dis', gt_scale=True, sky_loss_value=0) "
    "+ -1.*MatchingLoss(APLoss(nq='torch'), negatives_padding=128)"
)
WIDTHS = (
    "enc_embed_dim=24, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=4, "
    "dec_num_heads=2, dpt_dim=16"
)
DESCRIPTORS = "head_type='catmlp+dpt', output_mode='pts3d+desc24', two_confs=True"


def model(head=DESCRIPTORS):
    return (
        "AsymmetricMASt3R(patch_embed_cls='ManyAR_PatchEmbed', img_size=(224, 224), "
        f"{head}, {WIDTHS})"
    )


pytestmark = pytest.mark.usefixtures("offline", "one_thread")


def arguments(tree, out, *extra, resolution=32, n_corres="n_corres=64, nneg=0.5"):
    return [
        "--train_dataset",
        f"8 @ ScanNetpp(split='train', ROOT='{tree}', resolution={resolution}, aug_crop=16, "
        f"{n_corres})",
        "--train_criterion", CRITERION,
        "--model", model(),
        "--batch_size", "2",
        "--epochs", "1",
        "--max_steps", "2",
        "--num_workers", "0",
        "--output_dir", str(out),
        *extra,
    ]  # fmt: skip


def log(out):
    return [json.loads(line) for line in (out / "log.txt").read_text().splitlines()]


def test_two_updates_with_the_published_strings(write_tree, tmp_path):
    tree = write_tree(frames={"a": 7, "b": 5})
    test_set = f"ScanNetpp(split='val', ROOT='{tree}', resolution=32, seed=7, n_corres=64)"
    extra = ("--test_dataset", test_set, "--test_criterion", TEST_CRITERION)
    assert main(arguments(tree, tmp_path / "o", *extra)) == 0
    (entry,) = log(tmp_path / "o")
    assert entry["step"] == 2 and entry["skipped_updates"] == 0
    names = ("conf_loss_1", "Regr3D_pts3d_2", "matching_conf_loss", "Conf1_std", "MatchingLoss")
    assert all(math.isfinite(entry[f"train_{name}"]) for name in names)
    assert 0 <= entry["test_MatchingLoss"] <= 1
    expected = (
        entry["train_conf_loss_1"] + entry["train_conf_loss2"]
        + 0.075 * entry["train_matching_conf_loss"]
    )  # fmt: skip
    assert entry["train_loss"] == pytest.approx(expected, rel=1e-4)


def test_dust3r_weights_start_a_model_with_descriptors(write_tree, tmp_path, caplog):
    caplog.set_level("INFO")
    tree = write_tree(frames={"a": 7, "b": 5})
    plain = arguments(tree, tmp_path / "dust3r", "--model", model("head_type='dpt'"))
    plain += ["--train_criterion", "ConfLoss(Regr3D(L21), alpha=0.2)"]
    assert main(plain) == 0
    start = tmp_path / "dust3r/checkpoint-final.pth"
    still = ("--pretrained", str(start), "--lr", "0", "--min_lr", "0")
    assert main(arguments(tree, tmp_path / "mast3r", *still)) == 0
    before = checkpoint.load_file(start)["model"]
    after = checkpoint.load_file(tmp_path / "mast3r/checkpoint-final.pth")["model"]
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    new = {name.split(".")[1] for name in after.keys() - before.keys()}
    assert new == {"head_local_features"}


def test_upright_and_wide_images_train_together(write_tree, tmp_path):
    tree = write_tree(frames={"a": 7, "b": 5}, size=(80, 80))
    assert main(arguments(tree, tmp_path / "o", resolution=(64, 48))) == 0
    assert math.isfinite(log(tmp_path / "o")[0]["train_MatchingLoss"])


def test_a_data_set_without_correspondences_is_explained(write_tree, tmp_path, caplog):
    tree = write_tree(frames={"a": 7, "b": 5})
    assert main(arguments(tree, tmp_path / "o", n_corres="seed=1")) == 1
    assert "n_corres=1024" in caplog.text


def test_heads_start_alike_and_patches_with_one_descriptor():
    """Apart, descriptors of a small model collapse before they have learned anything."""
    network = build(model(), MODELS)
    first, second = network.downstream_head1, network.downstream_head2
    for name, weight in first.head_local_features.state_dict().items():
        assert torch.equal(weight, second.head_local_features.state_dict()[name])
    images = [{"img": torch.rand(1, 3, 32, 48) * 2 - 1} for _ in range(2)]
    with torch.no_grad():
        prediction, _ = network(*images)
    blocks = prediction["desc"][0].unfold(0, 16, 16).unfold(1, 16, 16).flatten(3)
    assert torch.allclose(blocks, blocks[..., :1].expand_as(blocks), atol=1e-6)
    assert not torch.allclose(blocks[0, 0], blocks[1, 1])


@pytest.mark.parametrize("ratio", [0.4, 4.0])
def test_the_descriptor_mlp_is_as_wide_as_asked(ratio):
    network = build(model(f"{DESCRIPTORS}, desc_mlp_ratio={ratio}"), MODELS)
    assert network.downstream_head1.head_local_features.fc1.out_features == round(48 * ratio)


def test_a_descriptor_mlp_of_nothing_is_refused():
    with pytest.raises(ValueError, match="desc_mlp_ratio=0"):
        AsymmetricMASt3R(
            head_type="catmlp+dpt", output_mode="pts3d+desc24", two_confs=True, desc_mlp_ratio=0
        )
