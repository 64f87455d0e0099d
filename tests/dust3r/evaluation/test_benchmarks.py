"""Benchmark strings and the choice of pairs."""

import pytest

from dust3r.evaluation.benchmarks import choose, load_pairs, parse_benchmarks
from dust3r.utils.spec import SpecError


def spec(root, **more):
    arguments = "".join(f", {key}={value!r}" for key, value in more.items())
    return f"ScanNetpp('all', ROOT={str(root)!r}, resolution=32{arguments})"


def test_names_and_data_sets(write_tree):
    root = write_tree(frames={"desk": 4})
    first, second = parse_benchmarks(f" A:{spec(root)} ;\n B-2 : 2 @ {spec(root)};")
    assert (first.name, len(first.dataset)) == ("A", 3)
    assert (second.name, len(second.dataset)) == ("B-2", 2)


def test_semicolons_in_quotes_do_not_part(write_tree):
    text = f"A:{spec('/no;where')}"
    with pytest.raises(FileNotFoundError, match="--benchmarks, A: .*/no;where"):
        parse_benchmarks(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no data set; give for example"),
        ("ScanNetpp('all')", "is not Name:Dataset"),
        ("a/b:ScanNetpp('all')", "is not Name:Dataset"),
        ("A:", "is not Name:Dataset"),
    ],
)
def test_what_is_no_benchmark_is_explained(text, message):
    with pytest.raises(ValueError, match=message):
        parse_benchmarks(text)


def test_wrong_specifications_say_where(write_tree):
    with pytest.raises(SpecError, match=r"--benchmarks, Rooms: .*ScanNetp.*ScanNetpp"):
        parse_benchmarks("Rooms:ScanNetp('all')")
    root = write_tree(frames={"desk": 3})
    with pytest.raises(ValueError, match="names 'A' twice"):
        parse_benchmarks(f"A:{spec(root)};A:{spec(root)}")
    with pytest.raises(ValueError, match="--benchmarks, A: .*no data set"):
        parse_benchmarks("A:ColorJitter")


def test_the_choice_is_a_function_of_name_number_and_seed():
    chosen = choose("Rooms", 1000, 20, 0)
    assert chosen == sorted(set(chosen)) and len(chosen) == 20 and max(chosen) < 1000
    assert chosen == choose("Rooms", 1000, 20, 0)
    assert chosen != choose("Rooms", 1000, 20, 1) and chosen != choose("Others", 1000, 20, 0)
    assert choose("Rooms", 5, 20, 0) == choose("Rooms", 5, None, 3) == [0, 1, 2, 3, 4]


def test_pairs_come_in_order_and_unusable_ones_with_a_reason(write_tree):
    root = write_tree(frames={"desk": 5})
    (root / "desk/images/desk_0004.jpg").write_bytes(b"no image")
    dataset = parse_benchmarks(f"A:{spec(root)}")[0].dataset
    found = list(load_pairs(dataset, [0, 2, 3], batch_size=2, num_workers=0))
    assert [indices for indices, *_ in found] == [[0, 2], [3]]
    assert found[0][1][0]["img"].shape[0] == 2
    assert found[1][1] is None and "desk_0004" in found[1][2][0]
