"""`vla doctor`: is this machine ready, or is a run sound; and if not, what makes it so?"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sim import gl_environment
from vla.settings import require_numbers

# An EGL that hangs on a broken driver must not hang the doctor.
PROBE_LIMIT_S = 60.0

# Package → the extra that brings it; empty for the core, without which nothing works.
REPORTED_PACKAGES = {
    "torch": "",
    "transformers": "",
    "numpy": "",
    "tyro": "",
    "mujoco": "sim",
    "gymnasium-robotics": "sim",
    "tensorboard": "train",
    "lerobot": "lerobot",
}

EXTRA_USES = {
    "sim": "tasks, rendering and planners",
    "train": "training and reports",
    "lerobot": "recording, videos and LeRobot's policies",
}

_NO_RENDERER = "sim.render.NoRendererError: "

# Draws in a process of its own, because a bad driver can end the process that tries it.
_PROBE = """
import time, mujoco, numpy
from sim.render import CameraRenderer, choose_backend
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 2'/><geom type='sphere' size='.1'/>"
    "<camera name='front' pos='0 -1 0' xyaxes='1 0 0 0 0 1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = CameraRenderer(model, ("front",), 96)
assert renderer.images(data)["front"].any(), "the image is black"
start = time.perf_counter()
for _ in range(10):
    renderer.images(data)
print(choose_backend(), 100 * (time.perf_counter() - start), flush=True)
"""


@dataclass(frozen=True)
class DoctorConfig:
    """What to check.

    Attributes:
        task: check this task instead of the machine: seeding, limits, images, success.
        directory: where data sets and runs will be written.
        free_gb: free disk that a run should find there, gigabytes.
        run: folder of a training, such as `runs/FetchPush/refined`: judge what it logged instead.
    """

    task: str | None = None
    directory: Path = Path()
    free_gb: float = 5.0
    run: Path | None = None

    def __post_init__(self) -> None:
        require_numbers(self)
        if self.run is not None and self.task is not None:
            raise ValueError("--task and --run check different things: give one of them")


@dataclass(frozen=True)
class Check:
    """One line of the report; `fix` is set exactly when something is wrong.

    Attributes:
        subject: what was looked at.
        finding: what was found.
        fix: the command or change that mends it; empty when all is well.
        essential: whether nothing works without it.
    """

    subject: str
    finding: str
    fix: str = ""
    essential: bool = True


@dataclass(frozen=True)
class RenderProbe:
    """What drawing a small image came to.

    Attributes:
        backend: the GL library that drew, "egl" or "osmesa"; empty when none did.
        image_ms: milliseconds a 96 x 96 image.
        reason: why none drew.
    """

    backend: str
    image_ms: float = 0.0
    reason: str = ""


def main(config: DoctorConfig) -> int:
    """Print every check; 1 if an essential one fails or a run shows something wrong, else 0."""
    if config.run is not None:
        return print_habits(config.run)
    failed = False
    for check in diagnose(config):
        mark = "ok  " if not check.fix else "FAIL" if check.essential else "warn"
        print(f"{mark}  {check.subject:<20} {check.finding}", flush=True)
        if check.fix:
            print(f"      {'':<20} fix: {check.fix}", flush=True)
            failed |= check.essential
    print("something essential is missing" if failed else "ready")
    return int(failed)


def print_habits(run: Path) -> int:
    """How a run stands in every habit; 1 where one is red, else 0."""
    # Only here: the checks of a machine need no part of training.
    from policies.evaluation.habits.diagnosis import diagnose_folder

    verdicts = diagnose_folder(run).verdicts
    for verdict in verdicts:
        print(f"{verdict.state:<13} {verdict.habit:<26} {verdict.reason}")
        if verdict.advice:
            print(f"{'':<13} {'':<26} try: {verdict.advice}")
    red = [verdict.habit for verdict in verdicts if verdict.state == "red"]
    print(f"wrong: {', '.join(red)}" if red else "nothing is red")
    return int(bool(red))


def diagnose(config: DoctorConfig) -> Iterator[Check]:
    """All checks, each made when it is asked for."""
    # A generator: the lines of fast checks appear while rendering is still being tried.
    if config.task is not None:
        from scripts.doctor_task import check_task

        yield from check_task(config.task)
        return
    yield check_python(sys.version_info[:2])
    versions = installed_versions()
    for package, extra in REPORTED_PACKAGES.items():
        yield check_package(package, extra, versions.get(package, ""))
    yield from check_combinations(versions)
    yield check_device()
    if "mujoco" in versions:
        yield check_rendering()
    yield check_disk(config.directory, config.free_gb)
    yield check_writable("results", config.directory)
    yield check_writable("temporary files", _temporary_folder())
    yield check_caches()
    yield check_shared_memory()
    yield check_git()


def installed_versions() -> dict[str, str]:
    """Package name → installed version, for the packages that the checks speak of."""
    found = {}
    for package in (*REPORTED_PACKAGES, "opencv-python", "opencv-python-headless"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def check_package(package: str, extra: str, found: str) -> Check:
    """Whether a package is there; a missing extra only warns, since a robot needs none."""
    if found:
        return Check(package, found)
    if not extra:
        return Check(package, "missing", "bash scripts/setup.sh")
    fix = f'pip install "lerobot_policy_vla[{extra}]", or bash scripts/setup.sh in a checkout'
    return Check(package, f"missing; {EXTRA_USES[extra]} need it", fix, essential=False)


def check_python(running: tuple[int, int]) -> Check:
    """The stack is built and tested on Python 3.12 alone."""
    fix = "" if running == (3, 12) else "use Python 3.12: bash scripts/setup.sh"
    return Check("python", platform.python_version(), fix)


def check_combinations(versions: dict[str, str]) -> Iterator[Check]:
    """Version combinations that are known to break, out of package name → version."""
    repair = "bash scripts/setup.sh (constraints.txt holds versions that work together)"
    if (
        versions.get("gymnasium-robotics") == "1.4.2"
        and "mujoco" in versions
        # A tuple of integers: as text 3.9 would come after 3.12.
        and _release(versions["mujoco"]) >= (3, 12)
    ):
        finding = f"{versions['mujoco']} breaks gymnasium-robotics 1.4.2 (Fetch raises)"
        yield Check("mujoco too new", finding, repair)
    if "numpy" in versions and not (2,) <= _release(versions["numpy"]) < (2, 3):
        yield Check("numpy", f"{versions['numpy']} is not >= 2, < 2.3 (lerobot)", repair)
    if {"opencv-python", "opencv-python-headless"} <= versions.keys():
        yield Check(
            "opencv twice",
            "opencv-python and opencv-python-headless overwrite each other's cv2",
            "uv pip uninstall opencv-python opencv-python-headless, then bash scripts/setup.sh",
        )


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())


def check_device() -> Check:
    """The CUDA device or the processor that policies will run on."""
    # Cores that this process may use: in a container fewer than `os.cpu_count()`.
    cores = len(os.sched_getaffinity(0))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    host = f"{cores} cores, {memory_gb:.0f} GB memory"
    try:
        import torch
    # OSError: a shared library of CUDA is missing.
    except (ImportError, OSError) as error:
        return Check("device", f"{host}; torch does not load: {error}", "bash scripts/setup.sh")
    if not torch.cuda.is_available():
        return Check("device", f"cpu, {host}")
    gpu = torch.cuda.get_device_properties(0)
    return Check("device", f"cuda, {gpu.name} {gpu.total_memory / 1e9:.0f} GB; {host}")


def check_rendering() -> Check:
    """Whether an image can be drawn without a screen."""
    probe = probe_rendering()
    if probe.backend:
        return Check("rendering", f"{probe.backend}, {probe.image_ms:.1f} ms a 96 x 96 image")
    # A missing package is no fault of the renderer, so its advice would mislead.
    missing = probe.reason.startswith("ModuleNotFoundError")
    fix = "bash scripts/setup.sh" if missing else gl_environment.advice()
    return Check("rendering", probe.reason.removesuffix(f": {fix}"), fix)


def probe_rendering() -> RenderProbe:
    """Draw with the backend that the simulation would choose on this machine."""
    try:
        run = subprocess.run(
            # The same interpreter, hence the same packages and the same environment variables.
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_LIMIT_S,
            # Its exit code is no proof either way, see below.
            check=False,
        )
    except subprocess.TimeoutExpired:
        return RenderProbe("", reason=f"drawing hung for {PROBE_LIMIT_S:.0f} s")
    # EGL may complain while it shuts down: the printed time is the proof, not the exit code.
    backend, _, image_ms = run.stdout.strip().partition(" ")
    if backend:
        return RenderProbe(backend, float(image_ms))
    # Ours is the most informative of several errors; later ones come from an unfinished clean-up.
    lines = run.stderr.splitlines()
    ours = [line for line in lines if line.startswith(_NO_RENDERER)]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    # The last of ours if there is one, else the last of the others.
    reason = [*errors, *ours][-1] if errors else f"drawing ended with exit code {run.returncode}"
    return RenderProbe("", reason=reason.removeprefix(_NO_RENDERER))


def check_disk(directory: Path, free_gb: float) -> Check:
    """Whether `directory`, or its nearest existing parent, has `free_gb` gigabytes free."""
    place = _nearest(directory)
    free = shutil.disk_usage(place).free / 1e9
    fix = "" if free >= free_gb else f"free {free_gb - free:.1f} GB, or choose another disk"
    return Check("free disk", f"{free:.0f} GB in {place}", fix)


def check_writable(subject: str, folder: Path | None) -> Check:
    """Whether a file can be made in `folder`, or in its nearest existing parent."""
    if folder is None:
        return Check(subject, "no folder for them", "set TMPDIR to one that can be written")
    place = _nearest(folder)
    try:
        # Tried rather than read from permissions: these say nothing of a full quota or a read-only
        # mount.
        with tempfile.TemporaryFile(dir=place):
            return Check(subject, f"{place} can be written")
    except OSError as error:
        fix = f"make {place} writable, or choose another folder"
        return Check(subject, f"{place} cannot be written: {error.strerror}", fix)


def check_caches() -> Check:
    """Whether Hugging Face's libraries can cache, as they do when a data set is read."""
    try:
        caches = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    except RuntimeError as error:  # this user has no home
        return Check("caches", str(error), "set HF_HOME to a folder that can be written", False)
    check = check_writable("caches", caches)
    fix = "set HF_HOME to a folder that can be written" if check.fix else ""
    return Check("caches", check.finding, fix, essential=False)


def check_shared_memory(place: Path = Path("/dev/shm"), needed_mb: float = 64.0) -> Check:
    """Whether environments can share images with their workers: about 0.1 MB each."""
    if not place.is_dir():
        return Check("shared memory", f"no {place} on this system")
    free_mb = shutil.disk_usage(place).free / 1e6
    fix = "" if free_mb >= needed_mb else "more shared memory (docker run --shm-size=1g)"
    return Check("shared memory", f"{free_mb:.0f} MB free in {place}", fix, essential=False)


def check_git() -> Check:
    """Whether results can name the commit that they come from; all else works without."""
    if found := shutil.which("git"):
        return Check("git", found)
    finding = "missing; runs and reports will not name their commit"
    return Check("git", finding, "apt-get install -y git (as root)", essential=False)


def _temporary_folder() -> Path | None:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return None


def _nearest(folder: Path) -> Path:
    """The folder, or the first of its parents that exists."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return place
