"""Errors, recalls and files of results of known poses."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r.utils.geometry import inv
from mast3r.visloc.metrics import (
    THRESHOLDS,
    PoseError,
    markdown,
    pose_deviation,
    pose_error,
    recalls,
    write_results,
)
from mast3r.visloc.scene import Query


def pose(turn=(0, 0, 0), centre=(0, 0, 0)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    matrix[:3, 3] = centre
    return matrix


def query(name, group="", known=True):
    return Query(name, f"{name}.png", None, pose() if known else None, group)


def test_errors_are_metres_between_centres_and_degrees_of_the_turn():
    error = pose_error(pose((0, 0.1, 0), (3, 4, 0)), pose((0, 0.3, 0)))
    assert error.position == pytest.approx(5) and error.rotation == pytest.approx(np.degrees(0.2))
    tiny = pose_error(pose((1e-7, 0, 0)), pose())
    assert tiny.rotation == pytest.approx(np.degrees(1e-7))
    assert pose_error(pose((0, 0, np.pi)), pose()).rotation == pytest.approx(180)
    lost = pose_error(None, pose())
    assert lost == PoseError(np.inf, np.inf)


def test_a_deviation_takes_the_estimate_to_the_truth():
    estimate, truth = pose((0.2, -0.1, 0.4), (1, 2, 3)), pose((0.25, -0.1, 0.4), (1.1, 2, 2.8))
    deviation = pose_deviation(estimate, truth)
    moved = Rotation.from_rotvec(deviation[:3]).as_matrix() @ estimate[:3, :3]
    np.testing.assert_allclose(moved, truth[:3, :3], atol=1e-12)
    np.testing.assert_allclose(estimate[:3, 3] + deviation[3:], truth[:3, 3])


def test_a_failed_query_counts_as_infinitely_wrong():
    queries = [query(name) for name in "abcd"] + [query("unknown", known=False)]
    errors = {
        "a": PoseError(0.05, 0.5),
        "b": PoseError(0.2, 0.5),
        "c": PoseError(0.05, 4.0),
        "d": PoseError(np.inf, np.inf),
    }
    (row,) = recalls(queries, errors)
    assert (row.queries, row.localised) == (4, 3)
    assert row.recalls == (0.25, 0.5, 0.75) and len(THRESHOLDS) == 3
    assert row.position == pytest.approx(0.125) and row.rotation == pytest.approx(2.25)


def test_groups_get_a_row_each_and_one_together():
    queries = [query("a", "day"), query("b", "night"), query("c", "night")]
    errors = dict(zip("abc", (PoseError(0.0, 0.0), *[PoseError(np.inf, np.inf)] * 2), strict=True))
    rows = recalls(queries, errors)
    assert [(row.group, row.queries) for row in rows] == [("day", 1), ("night", 2), ("all", 3)]
    assert [row.recalls[0] for row in rows] == [1, 0, pytest.approx(1 / 3)]
    table = markdown(rows)
    assert "| night | 2 | 0 | - | - | 0.0% | 0.0% | 0.0% |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1
    shown = json.dumps([row.as_json() for row in rows], allow_nan=False)
    assert json.loads(shown)[1]["median_position_m"] is None
    assert recalls([query("unknown", known=False)], {}) == []


def test_result_files_hold_world_to_camera_poses_of_what_was_found(tmp_path):
    poses = {"a": pose((0.1, 2.0, -0.4), (1, -2, 3)), "lost": None, "b": pose()}
    path = write_results(tmp_path / "new" / "poses.txt", poses, {"b": "other.jpg"})
    lines = [line.split() for line in path.read_text().splitlines()]
    assert [line[0] for line in lines] == ["a", "other.jpg"]
    numbers = np.array(lines[0][1:], float)
    read = pose(centre=numbers[4:])
    read[:3, :3] = Rotation.from_quat(numbers[:4], scalar_first=True).as_matrix()
    np.testing.assert_allclose(read, inv(poses["a"]), atol=1e-7)
    np.testing.assert_array_equal(np.array(lines[1][1:], float), [1, 0, 0, 0, 0, 0, 0])
