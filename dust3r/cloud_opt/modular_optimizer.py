"""Global alignment where cameras are partly known."""

from typing import Any

from dust3r.cloud_opt.optimizer import PointCloudOptimizer


class ModularPointCloudOptimizer(PointCloudOptimizer):
    """``PointCloudOptimizer`` with two focals an image fitted by default.

    Everything can be preset image by image in both; the published code has two classes for it, and
    scripts that name this one go on.
    """

    def __init__(self, *args: Any, fx_and_fy: bool = True, **kwargs: Any):
        super().__init__(*args, fx_and_fy=fx_and_fy, **kwargs)
