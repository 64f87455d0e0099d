"""The algebra of criteria, and that they leave the device alone."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dust3r.losses import L21, ConfLoss, Regr3D, Regr3D_ShiftInv
from dust3r.utils.spec import LOSSES, SpecError, build


@pytest.fixture
def pair():
    """view1, view2, pred1, pred2 of random points, a fifth of them invalid."""
    random = torch.Generator().manual_seed(0)
    views, preds = [], []
    for key in ("pts3d", "pts3d_in_other_view"):
        points, noise = torch.randn(2, 2, 8, 12, 3, generator=random)
        pose = torch.eye(4).repeat(2, 1, 1)
        valid = torch.rand(2, 8, 12, generator=random) > 0.2
        views.append({"camera_pose": pose, "pts3d": points, "valid_mask": valid})
        conf = 1 + torch.rand(2, 8, 12, generator=random)
        preds.append({key: (points + noise).requires_grad_(), "conf": conf.requires_grad_()})
    return *views, *preds


def test_criteria_add_up_with_weights_and_keep_unweighted_details(pair):
    conf, plain = ConfLoss(Regr3D(L21), alpha=0.2), Regr3D_ShiftInv(L21)
    text = "ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2) + 0.075*Regr3D_ShiftInv(L21)"
    value, details = build(text, LOSSES)(*pair)
    conf_value, conf_details = conf(*pair)
    plain_value, plain_details = plain(*pair)
    assert value.item() == pytest.approx((conf_value + 0.075 * plain_value).item(), rel=1e-6)
    assert details == conf_details | plain_details
    twice = (plain * 2)(*pair)[0]
    assert twice.item() == pytest.approx(2 * plain_value.item(), rel=1e-6)


def test_details_of_one_name_do_not_hide_each_other(pair):
    _, details = (Regr3D(L21) + Regr3D(L21, norm_mode=None) + Regr3D(L21))(*pair)
    firsts = [name for name in details if name.startswith("Regr3D_pts3d_1")]
    assert firsts == ["Regr3D_pts3d_1", "Regr3D_pts3d_1 (2)", "Regr3D_pts3d_1 (3)"]
    assert details[firsts[0]] == details[firsts[2]] != details[firsts[1]]


def test_a_criterion_shows_as_its_specification(pair):
    text = "ConfLoss(Regr3D_ScaleInv(L21, norm_mode='avg_dis', gt_scale=True), alpha=0.2)"
    both = f"{text} + 0.075 * (Regr3D(L21, norm_mode=None) + 2 * Regr3D(L21, norm_mode=None))"
    criterion = build(both, LOSSES)
    assert repr(criterion) == both
    rebuilt = build(repr(criterion), LOSSES)
    assert rebuilt(*pair)[0].item() == criterion(*pair)[0].item()


def test_only_criteria_add_and_only_numbers_weight():
    with pytest.raises(TypeError):
        Regr3D(L21) + 1
    with pytest.raises(TypeError):
        Regr3D(L21) * Regr3D(L21)


def test_a_misspelt_criterion_is_explained():
    with pytest.raises(SpecError, match="Regr3D"):
        build("Regr3d(L21)", LOSSES)


class ReadByHost(TorchDispatchMode):
    """Collects the operations whose outcome the host reads, which on a GPU make it wait."""

    WAITING = {"_local_scalar_dense", "_linalg_check_errors", "nonzero", "masked_select", "equal"}
    INDEXING = {"index", "index_put", "index_put_"}

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        by_mask = name in self.INDEXING and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in self.WAITING or by_mask:
            self.seen.add(name)
        return operation(*args, **kwargs or {})


@pytest.mark.parametrize(
    "text",
    [
        "ConfLoss(Regr3D(L21, norm_mode='avg_dis'), alpha=0.2) + 0.1 * Regr3D(L21, norm_mode=None)",
        "ConfLoss(Regr3D_ScaleShiftInv(L21, norm_mode='median_log1p', gt_scale=True))",
    ],
)
def test_the_host_never_waits_for_the_device(pair, text):
    criterion = build(text, LOSSES)
    with ReadByHost() as host:
        criterion(*pair)[0].backward()
    assert not host.seen


@pytest.mark.parametrize("read", [torch.linalg.inv, lambda x: x[x > 0], float])
def test_the_waiting_operations_are_recognised(read):
    with ReadByHost() as host:
        read(torch.ones(1, 1))
    assert host.seen
