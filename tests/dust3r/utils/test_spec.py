import math
from dataclasses import dataclass, field

import pytest

from dust3r.utils.spec import DATASETS, LOSSES, MODELS, Registry, SpecError, build

INF = math.inf


@dataclass
class Made:
    """Records how it was made, and the algebra done to it."""

    args: tuple = ()
    kwargs: dict = field(default_factory=dict)

    def __add__(self, other):
        return Op("+", self, other)

    def __rmul__(self, other):
        return Op("*", other, self)

    def __rmatmul__(self, other):
        return Op("@", other, self)


class Op(Made):
    def __init__(self, *args):
        super().__init__(args)


class AsymmetricMASt3R(Made):
    def __init__(self, img_size=(512, 512), depth_mode=None, patch_embed_cls=None, **kwargs):
        super().__init__((img_size, depth_mode, patch_embed_cls), kwargs)


class Co3d(Made):
    def __init__(self, split, *, ROOT=None, resolution=None, transform=None, aug_crop=False):
        super().__init__((split,), {"ROOT": ROOT, "resolution": resolution, "transform": transform})


class ScanNetpp(Co3d):
    def __init__(self, *args, mask_bg=True, **kwargs):
        super().__init__(*args, **kwargs)


class Loss(Made):
    def __init__(self, *args, **kwargs):
        super().__init__(args, kwargs)


L21 = Loss("l21")
ColorJitter = object()


class Broken:
    def __init__(self, ROOT):
        raise FileNotFoundError(f"no folder {ROOT}")


class Buggy:
    def __init__(self):
        len(3)


@pytest.fixture
def names() -> Registry:
    registry = Registry("dataset")
    for item in (AsymmetricMASt3R, Co3d, ScanNetpp, Broken, Buggy):
        registry.register()(item)
    for name in ("ConfLoss", "Regr3D", "ConfMatchingLoss"):
        registry.register(name)(Loss)
    registry.register("L21")(L21)
    registry.register("ColorJitter")(ColorJitter)
    return registry


def refusal(text: str, registry: Registry) -> tuple[str, str]:
    """The error's message, and the text from the caret on in the line that it points into."""
    with pytest.raises(SpecError) as raised:
        build(text, registry)
    *_, line, caret = str(raised.value).split("\n")
    assert caret.strip() == "^"
    return str(raised.value), line[caret.index("^") :]


def test_model_string(names):
    model = build("AsymmetricMASt3R(img_size=(224, 224), depth_mode=('exp', -inf, inf))", names)
    assert model == AsymmetricMASt3R((224, 224), ("exp", -INF, INF))


def test_dataset_algebra(names):
    text = "1000 @ Co3d(split='train', ROOT='/a b') + 500 @ ScanNetpp('val', resolution=[224, 2])"
    assert build(text, names) == Op(
        "+",
        Op("@", 1000, Co3d("train", ROOT="/a b")),
        Op("@", 500, ScanNetpp("val", resolution=[224, 2])),
    )


def test_loss_algebra(names):
    text = (
        "ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2) + "
        "0.075*ConfMatchingLoss(-2, {'a': 1})"
    )
    left = Loss(Loss(L21, norm_mode="avg_dis"), alpha=0.2)
    assert build(text, names) == Op("+", left, Op("*", 0.075, Loss(-2, {"a": 1})))


def test_operators_have_python_precedence(names):
    one, two, three = Loss(1), Loss(2), Loss(3)
    summed = build("ConfLoss(1) + 2*3 @ ConfLoss(2) + ConfLoss(3)", names)
    assert summed == Op("+", Op("+", one, Op("@", 6, two)), three)
    grouped = build("2 @ (ConfLoss(1) + ConfLoss(2))", names)
    assert grouped == Op("@", 2, Op("+", one, two))


def test_line_breaks_indentation_and_comments_are_harmless(names):
    text = """
        1000 @ Co3d(split='train',
    ROOT='a'  # not a bracket: (
                   )
            + 500 @
        ScanNetpp(split="train", transform=ColorJitter
        )\r\n + 2
          @ Co3d('x') \\
    """
    flat = (
        "1000 @ Co3d(split='train', ROOT='a') + "
        "500 @ ScanNetpp(split='train', transform=ColorJitter) + 2 @ Co3d('x')"
    )
    assert build(text, names) == build(flat, names)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[None]", [None]),
        ("(1, 'a', True, ())", (1, "a", True, ())),
        ("{'a': -1.5, 2: [inf, -inf]}", {"a": -1.5, 2: [INF, -INF]}),
        ("(float('inf'), float('-inf'))", (INF, -INF)),
        ("+1e-3 + 2", 2.001),
        ("ColorJitter", ColorJitter),
        ("'a' 'b'", "ab"),
    ],
)
def test_values(text, value, names):
    assert build(text, names) == value


def test_misspelt_name_is_pointed_at_with_the_nearest(names):
    message, spot = refusal("10 @ Co3d('a') +\n  5 @ ScanNetp(split='b')", names)
    assert "unknown dataset 'ScanNetp'" in message and "'ScanNetpp'" in message
    assert "line 2" in message
    assert spot == "ScanNetp(split='b')"


def test_name_unlike_any_lists_all(names):
    message, _ = refusal("Zzzzzz()", names)
    assert "ColorJitter, ConfLoss" in message


@pytest.mark.parametrize("text", ["Co3d('é', splt='a')", "ScanNetpp('é', splt='a')"])
def test_misspelt_argument_is_pointed_at_with_the_nearest(text, names):
    message, spot = refusal(text, names)
    assert "no argument 'splt'" in message and "did you mean 'split'?" in message
    assert "split, ROOT, resolution, transform, aug_crop" in message
    assert spot == "splt='a')"


def test_missing_and_surplus_arguments_name_those_accepted(names):
    message, spot = refusal("7 @ Co3d()", names)
    assert "missing a required argument: 'split'" in message and "it takes: split, ROOT" in message
    assert spot == "Co3d()"
    assert "too many positional" in refusal("Co3d(1, 2)", names)[0]
    assert refusal("Co3d('a', ROOT=1, ROOT=2)", names)[1] == "ROOT=2)"


@pytest.mark.parametrize(
    ("text", "told", "spot"),
    [
        ("__import__('os').system('x')", "'__import__'", "__import__('os').system('x')"),
        ("L21.__class__.__mro__", "attribute", ".__class__.__mro__"),
        ("Co3d('a').x", "attribute", ".x"),
        ("[L21][0]", "subscript", "[0]"),
        ("[L21 for i in (1, 2)]", "comprehension", "[L21 for i in (1, 2)]"),
        ("Co3d({i: 1 for i in (1, 2)})", "comprehension", "{i: 1 for i in (1, 2)})"),
        ("ConfLoss(L21 for i in (1, 2))", "comprehension", "(L21 for i in (1, 2))"),
        ("Co3d(lambda: 1)", "lambda", "lambda: 1)"),
        ("Co3d(f'{L21}')", "f-string", "f'{L21}')"),
        ("(x := 3)", "assignment", "x := 3)"),
        ("[*(1, 2)]", "unpacking", "*(1, 2)]"),
        ("Co3d(*(1, 2))", "unpacking", "*(1, 2))"),
        ("Co3d(**{'a': 1})", "unpacking", "**{'a': 1})"),
        ("{**{'a': 1}}", "unpacking", "{'a': 1}}"),
        ("{1, 2}", "a set", "{1, 2}"),
        ("1 < 2", "comparison", "1 < 2"),
        ("L21 or L21", "'or'", "L21 or L21"),
        ("L21 if 1 else L21", "condition", "L21 if 1 else L21"),
        ("yield", "'yield'", "yield"),
        ("L21 - L21", "operator", "- L21"),
        ("(L21) # -\n ** 9", "operator", "** 9"),
        ("not L21", "operator", "not L21"),
        ("-L21", "numbers only", "-L21"),
        ("b'a'", "bytes", "b'a'"),
        ("...", "ellipsis", "..."),
        ("1j", "complex", "1j"),
        ("nan", "'nan'", "nan"),
        ("float('nan')", "'inf'", "float('nan')"),
        ("L21()", "no arguments", "L21()"),
        ("Co3d('a')()", "registered name", "Co3d('a')()"),
        ("{[1]: 2}", "key", "[1]: 2}"),
        ("import os", "syntax", "import os"),
        ("L21; L21", "syntax", "; L21"),
    ],
)
def test_what_is_not_the_language_is_refused_at_its_spot(text, told, spot, names):
    message, pointed = refusal(text, names)
    assert told in message.split("\n")[0]
    assert pointed == spot


@pytest.mark.parametrize(
    ("text", "told", "spot"),
    [
        ("Co3d('a', (1, 2)", "'(' is never closed", "('a', (1, 2)"),
        ("L21) + (L21", "')' closes no '('", ") + (L21"),
        ("[L21)", "')' closes no '('", ")"),
        ("Co3d('a)", "unterminated string", "'a)"),
        ("Co3d('a'\n 2)", "comma", "'a'"),
    ],
)
def test_slips_of_the_pen_are_pointed_at(text, told, spot, names):
    message, pointed = refusal(text, names)
    assert told in message
    assert pointed == spot


@pytest.mark.parametrize(
    "text",
    ["9" * 5000, "9" * 30, f"{2**62} * 8", "'a' * 1000000000", "[0] * 1000000000", "'a' + 'b'"],
)
def test_what_would_fill_the_memory_is_refused(text, names):
    refusal(text, names)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5000 + ")" * 5000,
        "[" * 150 + "]" * 150,
        "ConfLoss(" * 120 + ")" * 120,
        "-" * 20_000 + "1",
        "a" + ".b().c()" * 900,
        "ConfLoss" + "()" * 3000,
        "+".join("1" * 40_000),
    ],
)
def test_deep_nesting_is_refused(text, names):
    assert "nest" in refusal(text, names)[0]


def test_deep_but_sensible_specifications_build(names):
    assert isinstance(build("ConfLoss(" * 50 + ")" * 50, names), Loss)
    assert build(" + ".join(["1"] * 500), names) == 500


def test_long_lines_show_the_part_around_the_caret(names):
    message, spot = refusal("Co3d('" + "x" * 500 + "', splt=1)", names)
    assert spot == "splt=1)"
    assert max(len(line) for line in message.split("\n")) < 200


@pytest.mark.parametrize("text", ["", " \n\t", "\x00", "\udcff", "x" * 100_001])
def test_unreadable_texts_are_refused(text, names):
    with pytest.raises(SpecError):
        build(text, names)


def test_control_characters_do_not_reach_the_terminal(names):
    message, spot = refusal("'\x1b[2J' + Zzzzzz", names)
    assert "\x1b" not in message
    assert spot == "Zzzzzz"


def test_nothing_is_built_when_a_later_part_is_wrong():
    built = []
    registry = Registry("model")
    registry.register("Costly")(lambda: built.append(1))
    for wrong in ("Cotsly()", "Costly(1)", "Costly().x", "Costly("):
        refusal(f"[Costly(), {wrong}]", registry)
    assert built == []


def test_errors_of_constructors_pass_through(names):
    with pytest.raises(FileNotFoundError, match="no folder /nowhere"):
        build("Broken(ROOT='/nowhere')", names)
    with pytest.raises(TypeError, match="has no len"):
        build("Buggy()", names)


def test_operators_that_the_objects_lack_are_pointed_at(names):
    message, spot = refusal("Co3d('a') @ 3", names)
    assert "'@' cannot join a value of type Co3d and a value of type int" in message
    assert spot == "@ 3"


def test_registry_holds_each_name_once():
    registry = Registry("loss")
    assert registry.register()(Loss) is Loss
    registry.register()(Loss)
    assert list(registry) == ["Loss"] and "Loss" in registry and registry.get("Loss") is Loss
    with pytest.raises(ValueError, match="'Loss' is taken by"):
        registry.register("Loss")(Co3d)
    with pytest.raises(ValueError, match="no __name__"):
        registry.register()(L21)
    for name in ("a b", "a.b", "inf", "float", "None", "lambda"):
        with pytest.raises(ValueError, match="cannot name a loss"):
            registry.register(name)(L21)


def test_registry_lookup_suggests():
    registry = Registry("model")
    with pytest.raises(SpecError, match="nothing is registered"):
        registry.get("AsymmetricMASt3R")
    registry.register()(AsymmetricMASt3R)
    with pytest.raises(SpecError, match="unknown model 'AsymetricMast3r'.*'AsymmetricMASt3R'"):
        registry.get("AsymetricMast3r")


def test_the_three_registries_say_what_they_hold():
    assert [registry.kind for registry in (MODELS, LOSSES, DATASETS)] == [
        "model",
        "loss",
        "dataset",
    ]
