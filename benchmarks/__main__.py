"""Run every benchmark, one after the other, each with its record.

    python -m benchmarks [--records DIR]

Takes about an hour. Stops at the first one that ends with an error: a result that differs from its reference. Those
that want a vocabulary or a corpus of yours are run by themselves: `hit_curves`, `bundles`, `next_token`; and
`endurance`, which takes minutes alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

BENCHMARKS = (
    "hashing",
    "families",
    "codecs",
    "gather",
    "cold",
    "auto",
    "tiers",
    "overlap",
    "simulate",
    "plan",
    "build",
    "repack",
    "tokens",
    "count",
    "count_disk",
    "traffic",
)
NEED_DIRECTORY = ("gather", "cold", "auto", "tiers", "plan", "build", "repack")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path, default=Path("docs/measurements"))
    options = parser.parse_args()
    options.records.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        for name in BENCHMARKS:
            print(f"\n== {name}", flush=True)
            command = [sys.executable, "-m", f"benchmarks.{name}", "--record", str(options.records / f"{name}.json")]
            command += ["--directory", scratch] if name in NEED_DIRECTORY else []
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
