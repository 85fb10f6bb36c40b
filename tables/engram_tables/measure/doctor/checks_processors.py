"""Checks of processors: their speed, what others take of them, and the GPU."""

from __future__ import annotations

from math import inf

from engram_tables.measure.doctor.case import Case
from engram_tables.measure.doctor.findings import (
    Finding,
    Placement,
    Severity,
    at_least_bytes,
    could_not_look,
    not_applicable,
)
from engram_tables.measure.doctor.tries import REGISTERED_BYTES, STEAL_SECONDS
from engram_tables.threads import resolve_threads
from engram_tables.units import format_bytes

_DRIVER = "/proc/driver/nvidia/version"
_CPUS = "/sys/devices/system/cpu"
# Drivers whose "powersave" is a policy that speeds up under load, not the lowest frequency.
_SPEED_UP_BY_THEMSELVES = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
_MOST_STOLEN_PERCENT = 5.0


def governor(case: Case) -> Finding:
    """Whether processors are kept at their lowest frequency."""
    found: dict[tuple[str, str], int] = {}
    for cpu in case.system.names(_CPUS, "cpu[0-9]*"):
        chosen = (case.system.text(f"{_CPUS}/{cpu}/cpufreq/scaling_governor") or "").strip()
        driver = (case.system.text(f"{_CPUS}/{cpu}/cpufreq/scaling_driver") or "").strip()
        if chosen:
            found[chosen, driver] = found.get((chosen, driver), 0) + 1
    if not found:
        return not_applicable("cpu-governor", "no frequency is told", "virtual machines leave it to their host")
    slow = [
        (chosen, driver) for chosen, driver in found if chosen == "powersave" and driver not in _SPEED_UP_BY_THEMSELVES
    ]
    words = ", ".join(f"{n} CPUs: {chosen} ({driver or 'no driver told'})" for (chosen, driver), n in found.items())
    return Finding(
        check="cpu-governor",
        severity=Severity.WILL_BE_SLOW if slow else Severity.FINE,
        found=words,
        limit="performance or schedutil, or a driver that speeds up by itself",
        remedy="let processors speed up under load" if slow else None,
        command="cpupower frequency-set -g performance" if slow else None,
    )


def stolen_time(case: Case) -> Finding:
    """How much of the processors' time a host gives to others: it lengthens the slowest fetches first."""
    ticks, just_now = case.system.cpu_ticks(), case.tries.stolen_percent
    if ticks is None:
        return could_not_look("cpu-steal", "/proc/stat does not say how much time was stolen")
    since_boot = 100 * ticks[0] / max(ticks[1], 1)
    percent, words = since_boot, f"{since_boot:.1f} % since boot"
    if just_now is not None:
        percent, words = just_now, f"{just_now:.1f} % in {STEAL_SECONDS} s just now, {words}"
    is_fine = percent <= _MOST_STOLEN_PERCENT
    return Finding(
        check="cpu-steal",
        severity=Severity.FINE if is_fine else Severity.WILL_BE_SLOW,
        found=words,
        limit=f"at most {_MOST_STOLEN_PERCENT:g} %{'' if just_now is None else ' just now'}",
        remedy=None if is_fine else "take a machine whose CPUs are its own, or measure at a quieter time",
        found_value=round(percent, 2),
        limit_value=_MOST_STOLEN_PERCENT,
        unit="%",
    )


def cpu_quota(case: Case) -> Finding:
    """Whether the control groups give less time than the CPUs that this process sees."""
    quota = case.system.cgroup_cpus
    n_cpus = resolve_threads(None) if case.system.is_live else len(case.system.names(_CPUS, "cpu[0-9]*"))
    if quota is None:
        return could_not_look("cpu-quota", "the control groups of this process or their quotas cannot be read")
    if quota == inf:
        return Finding(check="cpu-quota", severity=Severity.FINE, found=f"no quota, {n_cpus} CPUs")
    is_fine = quota >= n_cpus
    return Finding(
        check="cpu-quota",
        severity=Severity.FINE if is_fine else Severity.WILL_BE_SLOW,
        found=f"{quota:g} CPUs' time, {n_cpus} CPUs seen",
        limit=f"{n_cpus} CPUs' time: threads that outrun a quota all stop until its next period",
        remedy=None if is_fine else f"raise the quota, or fetch with {max(int(quota), 1)} threads",
        command=None if is_fine else f"taskset -c 0-{max(int(quota), 1) - 1} COMMAND",
        found_value=quota,
        limit_value=n_cpus,
        unit="CPUs",
    )


def gpu(case: Case) -> Finding:
    """Whether there is a GPU, and CuPy to drive it."""
    why = case.tries.why_no_gpu
    if not case.is_for(Placement.GPU, Placement.PINNED):
        return not_applicable("gpu", "not looked for", "rows do not go to a GPU")
    if not case.tries.is_live:
        return could_not_look("gpu", str(why))
    limit = "a driver, a device, and CuPy for its version"
    if why is None:
        return Finding(check="gpu", severity=Severity.FINE, found="usable", limit=limit)
    remedy, command = without_gpu(case)
    return Finding(check="gpu", severity=Severity.WILL_FAIL, found=why, limit=limit, remedy=remedy, command=command)


def without_gpu(case: Case) -> tuple[str, str]:
    """What is missing first: the driver, which no package brings; its devices; or CuPy."""
    if case.system.text(_DRIVER) is None:
        remedy = (
            "install and load the NVIDIA driver on the host of a machine with a GPU; a container gets it from there "
            "(`docker run --gpus all`)"
        )
        return remedy + (
            "" if case.tries.has_cupy else ", and CuPy by the extra gpu-cuda12 or gpu-cuda13"
        ), "nvidia-smi"
    if not case.tries.has_cupy:
        return "install CuPy for the driver's version, which `nvidia-smi` tells", (
            "pip install 'engram-tables[gpu-cuda12]'"
        )
    return (
        "see whether `nvidia-smi` lists a GPU that CuPy's version of CUDA drives; give a container its devices "
        "(`docker run --gpus all`)"
    ), "nvidia-smi"


def gpu_memory(case: Case) -> Finding:
    """Whether the first GPU's free memory holds the rows."""
    if not case.is_for(Placement.GPU):
        return not_applicable("gpu-memory", "not looked at", "rows stay in host memory or in files")
    free = case.tries.gpu_free_bytes
    if free is None:
        return could_not_look("gpu-memory", f"waived: {case.tries.why_no_gpu}")
    return at_least_bytes(
        "gpu-memory", free, case.subject.device_bytes, "free on GPU 0",
        remedy="split the table over GPUs (ranks), keep rows in pinned host memory, or only hot ones on the GPU",
    )  # fmt: skip


def host_registration(case: Case) -> Finding:
    """Whether the driver registers host memory, tried with 64 MiB of it."""
    name = "host-registration"
    if not case.is_for(Placement.PINNED):
        return not_applicable(name, "not tried", "no kernel reads host memory")
    if case.tries.why_no_gpu is not None:
        return could_not_look(name, f"waived: {case.tries.why_no_gpu}")
    why = case.tries.why_not_registered
    return Finding(
        check=name,
        severity=Severity.FINE if why is None else Severity.WILL_FAIL,
        found=f"{format_bytes(REGISTERED_BYTES)} registered and given back" if why is None else why,
        limit="memory that kernels read over the bus; the rest is registered in chunks of 64 GiB",
        remedy=None if why is None else "raise the limit on locked memory, or fetch with staged",
        command=None if why is None else "ulimit -l unlimited",
    )
