"""Each step on a real disk that is full or read-only: one sentence that names the file and the remedy, no traceback.

Run with ``make test TESTS=tests/jobs/runs/test_full_disk.py``.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.demo.sample_catalog import generate
from jobs.errors import JobError, TransientError
from jobs.lake.layout import Lake
from jobs.runtime.failure_messages import explain
from tests import small_disk
from tests.conftest import DAY1

STEPS = (
    "import-catalog {catalog} --ds {ds}",
    "validate --ds {ds}",
    "plan --ds {ds}",
    "preprocess --run {run}",
    "tag --run {run}",
    "publish --run {run}",
    "report --run {run}",
    "dataset --ds {ds}",
)


def say(words: str) -> str:
    return f"echo {shlex.quote(words)}"


@pytest.mark.spark
@pytest.mark.damage
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_each_step_on_a_bad_disk_reports_it_and_continues_after_the_repair(
    trained: Lake, tmp_path: Path, fault: str
) -> None:
    """The lake and TMPDIR are on the disk. After each failure, the fault is repaired and the step succeeds."""
    catalog, disk = tmp_path / "catalog", tmp_path / "disk"
    generate(catalog, products=60, seed=5, dirty=False)
    disk.mkdir()
    lake = disk / "lake"
    spoil, mend = {
        "full": (f"dd if=/dev/zero of={disk}/filler bs=4k 2>/dev/null", f"rm {disk}/filler"),
        "read-only": (f"mount -o remount,ro {disk}", f"mount -o remount,rw {disk}"),
    }[fault]
    lines = [f"mkdir {disk}/tmp {lake}; cp -r {trained.root}/models {lake}/; export TMPDIR={disk}/tmp; run=none"]
    for step in STEPS:
        command = step.format(catalog=catalog, ds=DAY1, run="$run")
        name = step.split()[0]
        lines += [
            spoil,
            f"{sys.executable} -m jobs {command} >{tmp_path}/{name}.out 2>{tmp_path}/{name}.err; {say(name)} $?",
            mend,
            f"out=$({sys.executable} -m jobs {command} 2>{tmp_path}/{name}.again); {say(f'{name} again')} $?",
            *([f"run=$(ls {lake}/plans/ds={DAY1} | grep run= | sed s/run=//)"] if name == "plan" else []),
        ]
    environment = os.environ | {
        "TAGGING_ROOT": str(lake), "TAGGING_MODEL_CONFIG_NAME": "tiny", "TAGGING_SPARK_MASTER": "local[2]",
        "TAGGING_DEVICE": "cpu", "PYTHONPATH": str(Path(__file__).resolve().parents[3]),
    }  # fmt: skip
    script = tmp_path / "script.sh"
    script.write_text("\n".join(lines))
    within = small_disk.command(disk, 256 << 20, f"sh {script}")
    done = subprocess.run(within, capture_output=True, text=True, check=False, env=environment)
    codes = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    for name in (step.split()[0] for step in STEPS):
        said = (tmp_path / f"{name}.err").read_text()
        last = said.strip().splitlines()[-1]
        assert "Traceback" not in said, said[-3000:]
        assert last.startswith("error: "), said[-3000:]
        assert str(disk) in last, last
        assert ("no room" if fault == "full" else "Read-only file system") in last, last
        assert codes[name] == ("1" if fault == "full" else "2"), last
        assert codes[f"{name} again"] == "0", (tmp_path / f"{name}.again").read_text()[-3000:]


WRITES = """
import gzip, json, pathlib, shutil, sys, tempfile, zipfile
import duckdb, numpy as np, pyarrow as pa, pyarrow.parquet as pq, yaml
from PIL import Image
from jobs.lake import storage
from jobs.runtime.failure_messages import explain

disk, data, rng = pathlib.Path(sys.argv[1]), bytes(2**20), np.random.default_rng(0)
noise = rng.bytes(2**20)
source = pathlib.Path(sys.argv[2])
source.write_bytes(noise)

def compressed():
    with gzip.open(disk / "x.gz", "wb") as file:
        file.write(noise)

def zipped():
    with zipfile.ZipFile(disk / "x.zip", "w") as file:
        file.writestr("x", noise)

def stored():
    storage.write_bytes(disk / "x.json", data)

def temporary():
    with tempfile.NamedTemporaryFile(dir=disk) as file:
        file.write(data)
        file.flush()

def database():
    with duckdb.connect() as connection:
        connection.execute("copy (select hash(range) as x from range(200000)) to ? (format parquet)", [str(disk / "d.parquet")])

def table():
    with storage.whole_file(disk / "whole.parquet") as path:
        pq.write_table(pa.table({"x": np.frombuffer(noise, dtype=np.uint8)}), path)

ways = {
    "open": lambda: (disk / "x").write_bytes(data), "gzip": compressed, "zipfile": zipped, "storage": stored,
    "tempfile": temporary, "shutil": lambda: shutil.copyfile(source, disk / "copy"),
    "numpy": lambda: np.save(disk / "x.npy", np.zeros(2**17)), "savez": lambda: np.savez(disk / "x.npz", np.zeros(2**17)),
    "pyarrow": lambda: pq.write_table(pa.table({"x": np.frombuffer(noise, dtype=np.uint8)}), disk / "x.parquet"),
    "whole_file": table, "duckdb": database,
    "pillow": lambda: Image.frombytes("RGB", (512, 512), noise[: 512 * 512 * 3]).save(disk / "x.png"),
}
for name, write in ways.items():
    try:
        write()
        told = "it was written"
    except Exception as error:
        found = explain(error)
        told = f"{type(found).__name__}: {found}" if found else f"not told: {error!r}"
    print(json.dumps([name, told]))
"""


def test_a_full_disk_is_reported_from_every_library(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "writes.py"
    script.write_text(WRITES)
    within = small_disk.command(disk, 64 << 10, f"{sys.executable} {script} {disk} {tmp_path / 'source'}")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(within, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    told = dict(json.loads(line) for line in done.stdout.splitlines())
    assert len(told) == 12
    wrong = {
        name: words
        for name, words in told.items()
        if not words.startswith("TransientError: ") or "no room" not in words
    }
    assert not wrong
    assert str(disk) in told["duckdb"]


def test_messages_about_disks_are_recognized_from_every_library(tmp_path: Path) -> None:
    found = explain(OSError(28, "No space left on device", str(tmp_path / "x")))
    assert isinstance(found, TransientError)
    assert str(found).startswith(f"{tmp_path / 'x'}: no room on its disk; make some")
    java = "java.io.IOException: No space left on device\n\tat java.base/java.io.FileOutputStream.writeBytes(Native Method)"
    assert str(explain(ValueError(java))).startswith("a file of this step, in the lake or in ")
    assert str(explain(ValueError(f"{java}\n\tof /lake/x.parquet"))).startswith("/lake/x.parquet: no room on its disk")
    cause = RuntimeError("the step failed")
    cause.__cause__ = OSError(30, "Read-only file system", "/lake/y")
    found = explain(cause)
    assert type(found) is JobError
    assert str(found).startswith("/lake/y: it cannot be written or read: Read-only file system")
    worker = "Traceback (most recent call last):\n  File x\njobs.errors.TransientError: /lake/p: no room for it in /lake: full; make some"
    found = explain(ValueError(worker))
    assert isinstance(found, TransientError)
    assert str(found) == "/lake/p: no room for it in /lake: full; make some"
    assert explain(ValueError("something else")) is None
    assert explain(FileNotFoundError(2, "No such file or directory", "/lake/z")) is None
