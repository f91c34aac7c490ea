"""CPU quotas and memory limits of control groups: simulated file trees, and a real group if possible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pbtrl.system import cgroups
from pbtrl.system.cgroups import MemoryLimit
from tests.command import ROOT

V1_UNLIMITED = 2**63 - 4096
MIB = 2**20

V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1_CPU = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
OTHERS = "22 27 0:21 / /proc rw,nosuid - proc proc rw\n34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset"


@dataclass(frozen=True)
class Case:
    """A machine: /proc/self/cgroup, mounts, files below /sys/fs/cgroup, and the resulting limits."""

    name: str
    cgroup: str
    mounts: tuple[str, ...]
    files: dict[str, str | int] = field(default_factory=dict)
    quota: float | None = None
    memory: tuple[int, int] | None = None


CASES = [
    Case("nothing at all", "", ()),
    Case("v2 without limits", "0::/", (V2,), {"cpu.max": "max 100000", "memory.max": "max", "memory.current": 7}),
    Case("v2", "0::/job", (V2,), {"job/cpu.max": "50000 100000\n"}, quota=0.5),
    Case("v2, parent is tighter", "0::/a/b/c", (V2,), {
        "a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "400000 100000",
        "a/memory.max": 900, "a/memory.current": 800, "a/b/c/memory.max": 500, "a/b/c/memory.current": 10,
    }, quota=1.5, memory=(900, 100)),
    Case("v2, only other groups are limited", "0::/a", (V2,), {"b/cpu.max": "1 2", "a/b/memory.max": 5}),
    Case("v2, memory.high", "0::/a", (V2,), {
        "a/memory.max": 900, "a/memory.high": 700, "a/memory.current": 100,
    }, memory=(700, 600)),
    Case("v2, file cache", "0::/a", (V2,), {
        "a/memory.max": 900, "a/memory.current": 850,
        "a/memory.stat": "anon 50\nfile 800\nactive_file 100\ninactive_file 700",
    }, memory=(900, 750)),
    Case("v2, more in use than allowed", "0::/a", (V2,), {"a/memory.max": 9, "a/memory.current": 10}, memory=(9, 0)),
    Case("v1 without limits", "4:memory:/\n2:cpu,cpuacct:/\n0::/", (OTHERS, V1_CPU, V1_MEMORY), {
        "cpu,cpuacct/cpu.cfs_quota_us": -1, "cpu,cpuacct/cpu.cfs_period_us": 100_000,
        "memory/memory.limit_in_bytes": V1_UNLIMITED, "memory/memory.usage_in_bytes": 5,
    }),
    Case("v1, nested", "4:memory:/slurm/job_7/step_0\n2:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/x", (
        OTHERS, V1_CPU, V1_MEMORY,
    ), {
        "cpu,cpuacct/slurm/cpu.cfs_quota_us": 250_000, "cpu,cpuacct/slurm/cpu.cfs_period_us": 100_000,
        "memory/slurm/memory.limit_in_bytes": 300 * MIB, "memory/slurm/memory.usage_in_bytes": 100 * MIB,
        "memory/slurm/memory.stat": f"inactive_file 0\ntotal_inactive_file {20 * MIB}",
        "memory/slurm/job_7/memory.limit_in_bytes": V1_UNLIMITED,
    }, quota=2.5, memory=(300 * MIB, 220 * MIB)),
    Case("v1, the group of another controller", "2:cpu:/a\n3:memory:/b", (V1_CPU, V1_MEMORY), {
        "cpu,cpuacct/b/cpu.cfs_quota_us": 1, "cpu,cpuacct/b/cpu.cfs_period_us": 2, "memory/a/memory.limit_in_bytes": 3,
    }),
    Case("hybrid, limits in v1", "2:cpu,cpuacct:/a\n0::/b", (V1_CPU, V2.replace("/cgroup ", "/cgroup/unified ")), {
        "cpu,cpuacct/a/cpu.cfs_quota_us": 30_000, "cpu,cpuacct/a/cpu.cfs_period_us": 10_000,
        "unified/b/cgroup.procs": "",
    }, quota=3.0),
    Case("hybrid, limits in v2", "9:name=systemd:/b\n0::/b", (V2.replace("/cgroup ", "/cgroup/unified "),), {
        "unified/b/cpu.max": "50000 25000", "unified/memory.max": 8, "unified/memory.current": 1,
    }, quota=2.0, memory=(8, 7)),
    Case("v2 in a container with a namespace", "0::/", (V2,), {"cpu.max": "20000 100000"}, quota=0.2),
    Case("v1 in a container, whose group is the mount's root", "2:cpu,cpuacct:/docker/7f\n4:memory:/docker/7f", (
        V1_CPU.replace(" / ", " /docker/7f "), V1_MEMORY.replace(" / ", " /docker/7f "),
    ), {
        "cpu,cpuacct/cpu.cfs_quota_us": 100_000, "cpu,cpuacct/cpu.cfs_period_us": 100_000,
        "memory/memory.limit_in_bytes": 64, "memory/memory.usage_in_bytes": 4,
    }, quota=1.0, memory=(64, 60)),
    Case("a group below the mount's root", "0::/docker/7f/sub", (V2.replace(" / ", " /docker/7f "),), {
        "cpu.max": "300000 100000", "sub/cpu.max": "200000 100000", "docker/7f/sub/cpu.max": "1 100",
    }, quota=2.0),
    Case("another container's mount", "0::/docker/7f", (V2.replace(" / ", " /docker/7 "),), {"cpu.max": "1 100"}),
    Case("namespaces, a mount from above", "0::/../a", (V2.replace(" / ", " /.. "),), {
        "cpu.max": "300000 100000", "a/cpu.max": "200000 100000",
    }, quota=2.0),
    Case("namespaces, a group without a name", "0::/", (V2.replace(" / ", " /../.. "),), {
        "x/cpu.max": "50000 100000", "x/y/cgroup.procs": f"1\n{os.getpid()}\n", "z/cpu.max": "1 100",
    }, quota=0.5),
    Case("namespaces, a group elsewhere", "0::/../../a", (V2,), {"cpu.max": "1 100", "a/cpu.max": "1 100"}),
    Case("a mount whose name has a blank", "0::/a", (V2.replace("/cgroup ", r"/c\040g "),), {
        "../c g/a/cpu.max": "50000 100000",
    }, quota=0.5),
    Case("two mounts", "0::/a/b", (V2.replace(" / ", " /a/b ").replace("/cgroup ", "/cgroup/x "), V2), {
        "a/cpu.max": "50000 100000", "x/cpu.max": "90000 100000",
    }, quota=0.5),
    Case("garbage in the limits", "0::/a", (V2,), {
        "cpu.max": "", "a/cpu.max": "many 0", "memory.max": "-5", "a/memory.max": "\udcff", "a/memory.current": "?",
    }),
    Case("a period of nothing", "0::/a", (V2,), {"cpu.max": "100", "a/cpu.max": "100 0"}),
    Case("garbage in use", "0::/", (V2,), {"memory.max": 9, "memory.current": "?", "memory.stat": "x"}, memory=(9, 9)),
    Case("garbage in proc", "\n0\n::\n0:\udcff::\x00", ("", "- -", "1 2 - cgroup2", V2.replace("/sys", "\x00")), {
        "cpu.max": "1 100",
    }),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_limits_of_simulated_machines(case: Case, tmp_path: Path) -> None:
    proc = {"cgroup": case.cgroup, "mountinfo": "\n".join(case.mounts)}
    for path, text in {
        **{tmp_path / "proc/self" / name: text for name, text in proc.items()},
        **{tmp_path / "sys/fs/cgroup" / name: str(text) for name, text in case.files.items()},
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode(errors="surrogateescape"))
    assert cgroups.cpu_quota(tmp_path) == case.quota
    assert cgroups.memory_limit(tmp_path) == (case.memory and MemoryLimit(*case.memory))


def test_machine_without_proc_has_no_limits(tmp_path: Path) -> None:
    assert cgroups.cpu_quota(tmp_path) is None
    assert cgroups.memory_limit(tmp_path) is None


def test_unreadable_limit_is_ignored(tmp_path: Path) -> None:
    """The file is replaced by a folder, because root may read everything."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/")
    (tmp_path / "proc/self/mountinfo").write_text(V2)
    (tmp_path / "sys/fs/cgroup/cpu.max").mkdir(parents=True)
    assert cgroups.cpu_quota(tmp_path) is None


# A real group


CORES, MEMORY = 0.9, 1500 * MIB
LIMITS = {
    "cpu": ({"cpu.max": "90000 100000"}, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "90000"}),
    "memory": ({"memory.max": str(MEMORY)}, {"memory.limit_in_bytes": str(MEMORY)}),
}
"""By controller, as version 2 writes them and as version 1 does."""


@pytest.fixture
def job() -> Iterator[list[Path]]:
    """Real groups to enter, whose parents have these limits."""
    quota, memory, made = cgroups.cpu_quota(), cgroups.memory_limit(), []
    if (quota and quota < CORES) or (memory and memory.free < 2 * MEMORY):
        pytest.skip("this machine's own limits are tighter")
    try:
        for controller, versions in LIMITS.items():
            outer = next(cgroups._groups(Path("/"), controller)) / f"pbtrl-test-{os.getpid()}"
            if not outer.exists():
                made.append(outer)
                (outer / "inner").mkdir(parents=True)
            limits = next(files for files in versions if all((outer / name).exists() for name in files))
            for name, text in limits.items():
                (outer / name).write_text(text)
    except (OSError, StopIteration) as error:
        pytest.skip(f"no limited group can be made here: {error!r}")
    else:
        yield [outer / "inner" for outer in made]
    finally:
        for folder in [folder for outer in made for folder in (outer / "inner", outer)]:
            with suppress(OSError):
                folder.rmdir()


def test_doctor_follows_the_limits_of_a_real_group(job: list[Path]) -> None:
    enter = "".join(f"open({str(group / 'cgroup.procs')!r}, 'w').write('0');" for group in job)
    code = f"{enter} import sys; from pbtrl.cli.main import main; sys.exit(main(['doctor', '--json']))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    checks = {c["check"]: c["what"] for c in json.loads(result.stdout)}
    assert checks["cores"] == f"1 of {os.cpu_count()} cores may be used (cgroup quota 0.9)"
    assert " free of the job's limit of 1.5 GiB; 1 worker needs " in checks["memory"]
