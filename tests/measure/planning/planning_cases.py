"""What the tests of planning share: a table, a disk, a hit curve, a machine, and a record of `simulate`."""

from __future__ import annotations

from typing import Any

from engram_tables.measure.planning.disk import Burst, Disk
from engram_tables.measure.planning.figures import Origin, given
from engram_tables.measure.planning.hit_curve import Answered, HitCurve
from engram_tables.measure.planning.machine import Machine, make_machine
from engram_tables.measure.planning.sizes import sizes_of_preset

V41 = sizes_of_preset("deepseek-v4.1-flash")
DISK = Disk(
    bursts=(Burst(1, 100.0), Burst(48, 600.0), Burst(128, 1600.0)),
    reads_per_s=given(100_000.0, "a test"), serial_read_us=given(50.0, "a test"),
    sequential_bytes_per_s=given(1e9, "a test"), origin=Origin.MEASURED, where="a test",
)  # fmt: skip
CURVE = HitCurve(
    points=((1000, Answered(0.5, 40.0)), (2000, Answered(0.6, 30.0)), (4000, Answered(0.6, 30.0))),
    origin=Origin.MEASURED, where="a test",
)  # fmt: skip


def machine_with(disk: Disk | None = DISK, **spaces: float) -> Machine:
    machine = make_machine(spaces={name: given(value, name) for name, value in spaces.items()})
    return Machine(spaces=machine.spaces, rates=machine.rates, disk=disk)


def simulated(**changes: Any) -> dict[str, Any]:
    def curve(policy: str, n_streams: int, hit_ratio: float, **others: Any) -> dict[str, Any]:
        point = {"cache_bytes": 1000, "hit_ratio": hit_ratio, "error": None, "misses_a_token_p50": 1,
                 "misses_a_token_p99": 48}  # fmt: skip
        return {"policy": policy, "unit": "row", "n_streams": n_streams, "tokens_a_step": n_streams,
                "is_prefill": False, "state": "steady", "points": [point], **others}  # fmt: skip

    return {
        "schema": "engram.simulate/1",
        "fingerprint": "f",
        "curves": [
            curve("belady", 1, 0.9), curve("lru", 1, 0.5), curve("lru", 4, 0.4), curve("tiered", 1, 0.55),
            curve("tiered", 16, 0.3), curve("tiered", 1, 0.1, state="cold"), curve("tiered", 1, 0.2, unit="page"),
            curve("tiered", 1, 0.05, tokens_a_step=512, is_prefill=True),
        ],
        "unique_rows": [{"chunk_tokens": 8, "unique_ratio": 0.9}, {"chunk_tokens": 512, "unique_ratio": 0.6},
                        {"chunk_tokens": 4096, "unique_ratio": None}],
        **changes,
    }  # fmt: skip
