"""Which model the demo runs."""

import pytest

import mast3r.model  # noqa: F401  (registers AsymmetricMASt3R)
from dust3r.demo import weights
from dust3r.utils.spec import MODELS


@pytest.mark.parametrize("name", ["AsymmetricCroCo3DStereo", "AsymmetricMASt3R"])
def test_published_folders_name_their_kind_by_their_settings(tmp_path, name):
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


def test_the_shipped_model_is_of_224_pixels():
    model, name = weights.load(None, None)
    assert name.startswith("rooms_small") and weights.native_size(model) == 224


def test_names_of_the_hub_are_asked_for_there(monkeypatch):
    asked = []

    def hub(repository: str, file: str) -> str:
        asked.append(repository)
        raise OSError("no connection")

    monkeypatch.setattr(weights, "hf_hub_download", hub)
    for name in ("DUSt3R_512", "someone/else"):
        with pytest.raises(FileNotFoundError, match="the Hugging Face hub gave none"):
            weights.load(None, name)
    assert asked == ["naver/DUSt3R_512", "someone/else"]
