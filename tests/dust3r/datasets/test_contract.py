"""Every data set, from a raw tree in its release's format, keeps the contract of DESIGN 2."""

import importlib
import pkgutil

import dataset_contract
import pytest
import raw
from dataset_contract import Built

NAMES = sorted(module.name for module in pkgutil.iter_modules(raw.__path__))


@pytest.fixture(scope="module", params=NAMES)
def built(request, tmp_path_factory) -> Built:
    case = importlib.import_module(f"raw.{request.param}").CASE
    return Built(case, case.build(tmp_path_factory.mktemp(request.param)))


def test_types_and_units(built):
    dataset_contract.check_types(built)


def test_depth_and_colours_are_the_worlds(built):
    dataset_contract.check_world(built)


def test_depth_lies_on_the_images_pixels(built):
    dataset_contract.check_grid(built)


def test_points_carried_from_view_to_view(built):
    dataset_contract.check_reprojection(built)


def test_upright_images(built):
    if not built.case.portrait:
        pytest.skip("this data set has no upright images")
    dataset_contract.check_portrait(built)


def test_a_seed_fixes_samples(built):
    dataset_contract.check_seed(built)


def test_algebra(built):
    dataset_contract.check_algebra(built)


def test_a_missing_image_is_named(built):
    dataset_contract.check_missing_file(built)
