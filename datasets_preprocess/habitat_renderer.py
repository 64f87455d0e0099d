"""Renders a scene through habitat-sim (https://github.com/facebookresearch/habitat-sim)."""

import importlib.util
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

_OPENGL_AXES = np.diag([1.0, -1, -1])
_COLOUR, _DEPTH = "color", "depth"


def require_habitat_sim() -> None:
    """RuntimeError, with how to mend it, where habitat-sim is not installed."""
    if importlib.util.find_spec("habitat_sim") is None:
        raise RuntimeError(
            "rendering needs habitat-sim, which is not installed: it comes by conda (conda install "
            "habitat-sim headless -c conda-forge -c aihabitat), for the Python versions it is "
            "built for; views rendered elsewhere need no more than --output_dir"
        )


class HabitatRenderer:
    """A scene with one pinhole camera of square pixels and a central principal point.

    Args:
        scene: the scene's file, such as a .glb.
        size: (width, height) of the images.
        focal: focal length in pixels.
        config: a scene data set's configuration file, where the scene needs one.
    """

    def __init__(
        self, scene: Path, size: tuple[int, int], focal: float, config: Path | None = None
    ) -> None:
        require_habitat_sim()
        import habitat_sim

        settings = habitat_sim.SimulatorConfiguration()
        settings.scene_id = str(scene)
        if config is not None:
            settings.scene_dataset_config_file = str(config)
        width, height = size
        sensors = []
        for name, kind in (
            (_COLOUR, habitat_sim.SensorType.COLOR),
            (_DEPTH, habitat_sim.SensorType.DEPTH),
        ):
            sensor = habitat_sim.CameraSensorSpec()
            sensor.uuid, sensor.sensor_type = name, kind
            sensor.resolution = [height, width]
            sensor.hfov = float(np.degrees(2 * np.arctan(width / (2 * focal))))
            sensor.position = [0.0, 0.0, 0.0]
            sensors.append(sensor)
        agent = habitat_sim.agent.AgentConfiguration(sensor_specifications=sensors)
        self._simulator = habitat_sim.Simulator(habitat_sim.Configuration(settings, [agent]))
        self._state = habitat_sim.AgentState

    def render(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """RGB (H, W, 3) uint8 and depth z (H, W) float32 metres; ``pose`` camera-to-world, OpenCV's
        camera axes in Habitat's world."""
        state = self._state()
        state.position = np.asarray(pose[:3, 3], np.float32)
        state.rotation = Rotation.from_matrix(pose[:3, :3] @ _OPENGL_AXES).as_quat().tolist()
        self._simulator.get_agent(0).set_state(state)
        seen = self._simulator.get_sensor_observations()
        return np.ascontiguousarray(seen[_COLOUR][..., :3]), np.asarray(seen[_DEPTH], np.float32)

    def close(self) -> None:
        """Free the graphics card."""
        self._simulator.close()
