"""Images: what they show, that they are repeatable, and what happens without a GL library."""

from __future__ import annotations

import copy
from pathlib import Path

import mujoco
import numpy as np
import pytest

from sim import render
from sim.camera import Camera, View
from sim.film import replay, write_mp4
from sim.render import CameraRenderer, NoRendererError, choose_backend
from sim.tasks.registry import make_task

pytestmark = pytest.mark.render


@pytest.fixture(scope="module")
def push():
    """FetchPush and its renderer."""
    task = make_task("FetchPush")
    renderer = CameraRenderer(task.model, ("front", "side", "wrist"), 96)
    yield task, renderer
    renderer.close()


def _red(image: np.ndarray) -> np.ndarray:
    r, g, b = np.moveaxis(image.astype(int), -1, 0)
    return (r > 2 * g) & (r > 2 * b) & (r > 40)


def _draw(task, renderer, seed):
    data = task.make_data()
    episode = task.reset(data, seed)
    task.place_markers(data, episode)
    return renderer.images(data), episode


def test_same_state_same_pixels_whatever_was_drawn_before(push):
    """No image depends on the one before."""
    first, _ = _draw(*push, 0)
    other, _ = _draw(*push, 1)
    again, _ = _draw(*push, 0)
    assert any((first[name] != other[name]).any() for name in first)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


@pytest.mark.parametrize("camera", ["front", "side"])
def test_projected_points_are_where_the_image_shows_them(push, camera):
    """The middle of the red pixels is the projected goal, to less than a pixel."""
    task, renderer = push
    away = []
    for seed in range(12):
        data = task.make_data()
        episode = task.reset(data, seed)
        task.place_markers(data, episode)
        red = np.argwhere(_red(renderer.images(data)[camera]))
        if len(red) < 12:
            continue  # hidden
        (x, y), size = Camera(camera).project(task.model, data, episode.goal[None])[0], 96
        away.append(red.mean(0) + 0.5 - ((y + 1) * size / 2, (x + 1) * size / 2))
    assert len(away) >= 6
    assert np.median(np.abs(away)) < 0.6


def test_target_is_seen_where_the_goal_is(push):
    """In the front view the world's y runs to the right, and nearer the camera (x) is lower."""
    rows, columns, goals = [], [], []
    for seed in range(12):
        images, episode = _draw(*push, seed)
        red = np.argwhere(_red(images["front"]))
        if len(red) >= 20:
            rows.append(red[:, 0].mean())
            columns.append(red[:, 1].mean())
            goals.append(episode.goal)
    x, y, _ = np.array(goals).T
    assert len(goals) >= 8
    assert np.corrcoef(y, columns)[0, 1] > 0.99
    assert np.corrcoef(x, rows)[0, 1] > 0.99


@pytest.mark.parametrize("name", ["FetchReach", "FetchPush", "FetchSlide", "FetchPickAndPlace"])
def test_target_is_seldom_hidden_in_both_fixed_views(name):
    """While unsolved, along the expert's path."""
    task = make_task(name)
    renderer = CameraRenderer(task.model, ("front", "side"), 96)
    data = task.make_data()
    hidden = []
    for seed in range(15):
        episode = task.reset(data, seed)
        for step in range(20):
            if step % 5 == 0 and not task.is_success(data, episode):
                task.place_markers(data, episode)
                visible = [_red(image).sum() for image in renderer.images(data).values()]
                hidden.append(max(visible) < 8)
            task.step(data, episode, task.expert_action(data, episode))
    renderer.close()
    assert np.mean(hidden) <= 0.1


def test_renderers_of_two_models_share_a_process(push):
    """Each draws in its own GL context."""
    before, _ = _draw(*push, 0)
    other = make_task("FetchReach")
    second = CameraRenderer(other.model, ("front",), 64)
    second.images(other.make_data())
    after, _ = _draw(*push, 0)
    second.close()
    last, _ = _draw(*push, 0)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])
        np.testing.assert_array_equal(before[name], last[name])


@pytest.mark.parametrize("turned", [False, True])
def test_a_view_of_its_own_shows_the_goal_where_it_is_projected(push, turned):
    """A free camera, upright and turned by half a turn."""
    task, _ = push
    camera = Camera("own", view=View((1.3, 0.75, 0.5), 1.2, 160.0, -40.0), turned=turned)
    assert camera.is_fixed(task.model)
    renderer = CameraRenderer(task.model, (camera,), 96)
    data = task.make_data()
    for seed in range(4):
        episode = task.reset(data, seed)
        task.place_markers(data, episode)
        red = np.argwhere(_red(renderer.images(data)["own"]))[:, ::-1]
        if len(red) >= 20:
            x, y = camera.project(task.model, data, episode.goal[None])[0]
            away = red.mean(0) + 0.5 - ((x + 1) * 48, (y + 1) * 48)
            assert np.abs(away).max() < 1.5
    renderer.close()


def test_a_copy_of_the_model_may_be_drawn_instead(push):
    """Same geometry, another colour: one context is enough."""
    task, renderer = push
    plain, _ = _draw(task, renderer, 0)
    data, other = task.make_data(), copy.copy(task.model)
    episode = task.reset(data, 0)
    task.place_markers(data, episode)
    other.geom_rgba[:, :3] = 0.5
    other.mat_rgba[:, :3] = 0.5
    images = {name: np.empty((96, 96, 3), np.uint8) for name in renderer.cameras}
    renderer.render(data, images, other)
    assert np.abs(images["front"].astype(int) - plain["front"]).mean() > 5
    again, _ = _draw(task, renderer, 0)
    np.testing.assert_array_equal(again["front"], plain["front"])


def test_antialias_softens_edges():
    """Multisampling mixes colours at edges."""
    task = make_task("FetchPush", 64)
    images = {}
    for antialias in (False, True):
        renderer = CameraRenderer(task.model, ("front",), 64, antialias)
        images[antialias], _ = _draw(task, renderer, 0)
        renderer.close()
    colours = {on: len(np.unique(p["front"].reshape(-1, 3), axis=0)) for on, p in images.items()}
    assert colours[True] > colours[False]


@pytest.mark.parametrize("room", [None, 8])
def test_a_model_of_many_geometries_is_drawn_whole(
    room: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes last would be missing where a scene has no more room, with a warning at most."""
    dots = "<geom type='sphere' size='.001'/>" * 1200
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><worldbody><light pos='0 -1 1'/>{dots}<geom type='sphere' size='.2'/>"
        "<camera name='front' pos='0 -1 0' xyaxes='1 0 0 0 0 1'/></worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    monkeypatch.chdir(tmp_path)  # where MuJoCo logs warnings
    renderer = CameraRenderer(model, ("front",), 32)
    if room is not None:
        renderer._scene = render._make_scene(model, room)
    image = renderer.images(data)["front"]
    renderer.close()
    assert image[16, 16].any()
    assert not image[0, 0].any()


def test_closed_renderer_and_unknown_camera_are_refused(push):
    """With errors that name the cause."""
    task, _ = push
    with pytest.raises(ValueError, match=r"no camera 'top'.*front"):
        CameraRenderer(task.model, ("top",), 32)
    renderer = CameraRenderer(task.model, ("front",), 32)
    renderer.close()
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        renderer.images(task.make_data())


def test_environment_variable_is_respected_and_checked(monkeypatch):
    """MUJOCO_GL wins over the automatic choice."""
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert choose_backend() == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "vulkan")
    with pytest.raises(NoRendererError, match="egl"):
        choose_backend()


def test_without_any_library_the_error_says_what_to_install(monkeypatch):
    """A bare machine gets the command that helps."""

    def missing(name):
        raise OSError(name)

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(render.ctypes, "CDLL", missing)
    with pytest.raises(NoRendererError, match="apt-get install -y libegl1"):
        choose_backend()


def test_replay_shows_the_episode_and_the_film_decodes(tmp_path):
    """Frames are repeatable, and a browser's codec gives them back."""
    import av

    actions = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)
    frames = replay("FetchReach", 3, actions, size=64)
    assert frames.shape == (7, 64, 128, 3)
    np.testing.assert_array_equal(frames, replay("FetchReach", 3, actions, size=64))
    assert (frames[0] != frames[-1]).any()
    write_mp4(tmp_path / "film.mp4", frames)
    with av.open(str(tmp_path / "film.mp4")) as film:
        stream = film.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in film.decode(stream)]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert len(decoded) == 7
    assert np.abs(decoded[3].astype(int) - frames[3]).mean() < 10
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def test_film_refuses_odd_sizes_and_leaves_nothing(tmp_path):
    """A refused film writes no file."""
    with pytest.raises(ValueError, match="even"):
        write_mp4(tmp_path / "film.mp4", np.zeros((2, 63, 64, 3), np.uint8))
    assert not list(tmp_path.iterdir())
