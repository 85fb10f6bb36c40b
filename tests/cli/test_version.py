"""`engram --version`: a first line for programs, versions for people, a record, and nothing imported for it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata

import pytest

from engram_tables import __version__, versions
from engram_tables.address import spec_files, vocabulary
from engram_tables.address.golden import cases
from engram_tables.corpus.counts import counts_manifest
from engram_tables.corpus.tokens import token_manifest
from engram_tables.corpus.traffic import trace
from engram_tables.fetch.tiers import hot_list
from engram_tables.storage.bundles import bundle_manifest
from engram_tables.storage.table import manifest

from .conftest import Engram


def test_the_first_line_is_the_version_and_others_follow(engram: Engram) -> None:
    ran = engram("--version")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == f"engram {__version__}"
    assert re.fullmatch(r"python +\d+\.\d+\.\S+ \(\w+ on \w+ \w+\)", lines[2])
    assert f"numpy        {metadata.version('numpy')}" in lines
    assert set(versions.FORMATS) <= set(re.findall(r"engram\.[\w-]+/\d+", ran.out))


def test_the_record_has_what_is_installed(engram: Engram) -> None:
    (record,) = engram("--version", "--json").records()
    assert record["schema"] == "engram.version/1"
    assert record["engram_tables"] == __version__
    assert record["packages"]["numba"] == metadata.version("numba")
    assert [extra["extra"] for extra in record["extras"]] == sorted(extra["extra"] for extra in record["extras"])
    assert not {"dev", "fuzz"} & {extra["extra"] for extra in record["extras"]}


def test_formats_are_those_that_their_owners_write() -> None:
    owners = (
        vocabulary._SCHEMA, spec_files.SCHEMA, cases.SCHEMA, token_manifest.SCHEMA, counts_manifest.SCHEMA,
        trace.SCHEMA, manifest.SCHEMA, bundle_manifest.SCHEMA, hot_list.SCHEMA,
    )  # fmt: skip
    assert owners == versions.FORMATS


def test_a_missing_package_is_named(engram: Engram, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["numpy>=2", "no-such-package[x]>=1; python_version>'3'", "cupy>=1; extra == 'gpu'", "x>=1; extra=='dev'"]
    monkeypatch.setattr(versions.metadata, "requires", lambda _name: [*needed, "numpy; extra == 'both'", *needed[1:]])
    monkeypatch.setattr(versions, "_installed", lambda name: "2.1" if name == "numpy" else None)
    record = versions.versions()
    assert record["packages"] == {"numpy": "2.1", "no-such-package": None}
    assert record["extras"] == [
        {"extra": "gpu", "packages": {"cupy": None}},
        {"extra": "both", "packages": {"numpy": "2.1"}},
    ]
    out = engram("--version").out
    assert re.search(r"^no-such-package +not installed, and needed$", out, flags=re.MULTILINE)
    assert re.search(r"^\[gpu\] +not installed$", out, flags=re.MULTILINE)
    assert re.search(r"^\[both\] +numpy 2\.1$", out, flags=re.MULTILINE)


def test_sources_that_are_not_installed_have_a_version(engram: Engram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_DISTRIBUTION", "no-such-distribution")
    record = versions.versions()
    assert (record["packages"], record["extras"]) == ({}, [])
    assert engram("--version").out.startswith(f"engram {__version__}\n")


@pytest.mark.parametrize("words", [("--json",), ("--json", "spec", "list"), ("-q",)])
def test_what_stands_before_no_command_is_wrong_usage(engram: Engram, words: tuple[str, ...]) -> None:
    ran = engram(*words)
    assert (ran.code, ran.out) == (2, "")
    assert "--json" in ran.err if "--json" in words else "Missing command" in ran.err


def test_asking_loads_none_of_the_packages() -> None:
    check = "from engram_tables.versions import versions; versions(); import sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert not {"numpy", "numba", "pyarrow", "tokenizers", "cupy", "ray"} & set(done.stdout.split())
