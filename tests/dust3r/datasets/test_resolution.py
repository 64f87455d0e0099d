import pytest

from dust3r.datasets.resolution import parse_resolutions


@pytest.mark.parametrize(
    "given, sizes",
    [
        (224, ((224, 224),)),
        ((512, 384), ((512, 384),)),
        ([(512, 384), (512, 336)], ((512, 384), (512, 336))),
        ([[512, 384]], ((512, 384),)),
    ],
)
def test_accepts(given, sizes):
    assert parse_resolutions(given) == sizes


@pytest.mark.parametrize(
    "given, message",
    [
        (220, r"\(220, 220\).*multiples of 16.*\(208, 208\) and \(224, 224\)"),
        ((512, 380), r"\(512, 368\) and \(512, 384\)"),
        ([(512, 384), (500, 384)], r"\(500, 384\).*\(496, 384\) and \(512, 384\)"),
        (0, r"the nearest allowed: \(16, 16\)"),
        ((384, 512), r"width >= height, that is \(512, 384\)"),
        ([512, 384], "expected a whole number"),
        ("224", "expected a whole number"),
        (224.0, "expected a whole number"),
        (True, "expected a whole number"),
        ([], "expected a whole number"),
        ((512, 384, 3), "expected a whole number"),
    ],
)
def test_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        parse_resolutions(given)
