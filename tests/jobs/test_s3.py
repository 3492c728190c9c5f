"""A lake on a real S3 server: wrong settings are reported at once, and a night gives the same tables as on a disk."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb
import pytest
import yaml

from cma_clip_core import registry
from cma_clip_core.training.tensorboard import LOGS
from jobs.errors import JobError
from jobs.lake import duckdb_sql, s3_files, s3_preflight, storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath
from jobs.upkeep import published_tables
from tests import s3
from tests.cma_clip_core import drawn
from tests.conftest import DAY1, settings_for
from tests.jobs.training.test_train import ONE_THREAD, RUN, add_examples, settings_of

WITHIN = 30.0  # seconds until a wrong setting is reported


def run(*arguments: str, root: AnyPath | str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"TAGGING_ROOT": str(root), "TAGGING_PROGRESS": "false"} | variables,
    )  # fmt: skip


def refused(root: AnyPath | str, **variables: str) -> str:
    """Return the error output of a step that soon refuses its settings."""
    start = time.monotonic()
    done = run("tables", root=root, **variables)
    assert time.monotonic() - start < WITHIN
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


# --- wrong settings


def test_a_wrong_address(on_s3: AnyPath) -> None:
    said = refused(on_s3, AWS_ENDPOINT_URL=f"http://127.0.0.1:{s3.free_port()}")
    assert "correct AWS_ENDPOINT_URL" in said


@pytest.mark.long
def test_a_server_that_does_not_answer(on_s3: AnyPath) -> None:
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = run("tables", root=on_s3, AWS_ENDPOINT_URL=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - start < WITHIN
    assert done.returncode == 1, "it may answer later"
    assert "does not answer in time" in done.stderr
    assert "AWS_ENDPOINT_URL" in done.stderr


def test_a_server_that_is_not_s3(on_s3: AnyPath) -> None:
    with careless((), plain=True) as address:
        assert "is not an S3 server; correct AWS_ENDPOINT_URL" in refused(on_s3, AWS_ENDPOINT_URL=address)


@pytest.mark.usefixtures("on_s3")
def test_no_bucket() -> None:
    said = refused("s3://there-is-none/lake")
    assert "the bucket does not exist; create it, or correct TAGGING_ROOT" in said


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials(on_s3: AnyPath, name: str) -> None:
    said = refused(on_s3, **{name: "wrong-wrong-wrong"})
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in said
    assert "wrong-wrong-wrong" not in said


def test_no_credentials(on_s3: AnyPath, tmp_path: Path) -> None:
    nothing = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    said = refused(on_s3, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="", **nothing)
    assert "no credentials were found; set AWS_ACCESS_KEY_ID" in said


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("403", "no permission; allow these credentials to list, read, write and delete"),
        ("expired", "have expired; renew"),
    ],
)
def test_errors_about_refusals_of_the_server(faulty: tuple[AnyPath, s3.Proxy], fault: s3.Fault, says: str) -> None:
    root, proxy = faulty
    proxy.fault = lambda *_: fault
    assert says in refused(root)


def test_errors_about_later_refusals_name_the_lake_of_the_command(faulty: tuple[AnyPath, s3.Proxy]) -> None:
    root, proxy = faulty
    on_server: Any = root
    s3_preflight.check(on_server, create=True)
    proxy.fault = lambda _, path: None if path.endswith(s3_preflight.MARK) else "403"
    done = run("--root", str(root), "tables", root="./elsewhere")
    assert done.returncode == 2
    assert f"error: {root}: no permission" in done.stderr


def test_there_is_no_lake_yet(on_s3: AnyPath) -> None:
    assert "no lake exists there yet; `python -m jobs import-catalog` makes it" in refused(on_s3)
    assert storage.children(on_s3) == []


def test_a_prefix_with_other_objects(on_s3: AnyPath, tmp_path: Path) -> None:
    storage.write_bytes(on_s3 / "holidays.jpg", b"")
    assert "holds other objects, but no _lake.json" in refused(on_s3)
    done = run("import-catalog", str(tmp_path), "--ds", DAY1, root=on_s3)
    assert done.returncode == 2
    assert "Set TAGGING_ROOT to a prefix of its own" in done.stderr
    assert [path.name for path in storage.children(on_s3)] == ["holidays.jpg"]


@pytest.mark.parametrize("root", ["gs://bucket/lake", "s3://B/x", "s3://", "s3://bucket/../x", "s3://bucket//x"])
def test_a_root_that_is_no_path(root: str) -> None:
    said = refused(root)
    assert "error: wrong settings:\n  root: " in said


@contextmanager
def careless(honours: tuple[str, ...], *, plain: bool = False) -> Iterator[str]:
    """A server that ignores the conditions of writes, except those that it `honours`; or one that is not S3 at all."""
    objects: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, data: bytes = b"", etag: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if etag:
                self.send_header("ETag", f'"{etag}"')
            self.end_headers()
            self.wfile.write(data)

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            refused = b"<Error><Code>PreconditionFailed</Code></Error>"
            if "If-None-Match" in self.headers and "If-None-Match" in honours and self.path in objects:
                return self.answer(412, refused)
            if "If-Match" in self.headers and "If-Match" in honours:
                return self.answer(412, refused)
            objects[self.path] = body
            return self.answer(200, etag="1")

        def do_GET(self) -> None:
            if plain:
                return self.answer(404, b"<html>Not here</html>")
            if "list-type" in self.path:
                return self.answer(200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>")
            if self.path not in objects:
                return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            return self.answer(200, objects[self.path], etag="1")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            objects.clear()
            self.answer(200, b"<DeleteResult></DeleteResult>")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("honours", "says"), [((), "If-None-Match"), (("If-None-Match",), "If-Match")])
@pytest.mark.usefixtures("on_s3")
def test_a_server_without_conditional_writes(
    monkeypatch: pytest.MonkeyPatch, honours: tuple[str, ...], says: str
) -> None:
    with careless(honours) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3_files.forget()
        root: Any = s3_files.s3_path("s3://bucket/lake")
        with pytest.raises(JobError, match=f"its server ignores the condition {says}\\."):
            s3_preflight.check(root, create=True)
        assert s3_files.read(root / s3_preflight.MARK) is None
    s3_files.forget()


def test_a_new_lake_is_marked(on_s3: AnyPath) -> None:
    root: Any = on_s3
    s3_preflight.check(root, create=True)
    s3_preflight.check(root)
    assert [path.name for path in storage.children(on_s3)] == [s3_preflight.MARK]


# --- nights


@pytest.fixture
def brought(trained: Lake, on_s3: AnyPath) -> Lake:
    """The lake of `trained`, its model and the raw catalog of DAY1, on S3."""
    lake = Lake(on_s3)
    root: Any = on_s3
    s3_preflight.check(root, create=True)
    for name in ("models", "catalog/raw", "catalog/pictures"):
        assert storage.on_disk(trained.root)
        storage.send_folder(trained.root / name, on_s3 / name)
    return lake


def decisions(lake: Lake, ds: str | None = None) -> list[tuple[Any, ...]]:
    columns = "product_id, attribute, value, source, model_value, round(confidence, 4), model_version"
    with duckdb.connect() as connection:
        duckdb_sql.register_storage(connection, lake.root)
        if ds is not None:
            return sorted(
                published_tables.as_of(connection, settings_for(lake.root), ds).project(columns).fetchall(), key=str
            )
        return sorted(connection.read_parquet(lake.current_lines()).project(columns).fetchall(), key=str)


@pytest.mark.long
def test_a_night_on_s3_is_the_night_on_a_disk(brought: Lake, first_night: tuple[Lake, Any]) -> None:
    """Each step is a command in its own process, as in Airflow. Spark uses s3a."""
    made = json.loads(done(run("night", "--ds", DAY1, root=brought.root)).stdout.splitlines()[-1])
    assert decisions(brought) == decisions(first_night[0])
    assert decisions(brought, DAY1) == decisions(brought)
    assert storage.exists(brought.reports(made["run_id"]) / "report.html")
    # A second start finds the night done. The published tables can be read as `tables` shows.
    again = json.loads(done(run("night", "--ds", DAY1, root=brought.root)).stdout.splitlines()[-1])
    assert (again["products"], again["rows"]) == (made["products"], made["rows"])
    shown = done(run("tables", root=brought.root)).stdout
    assert f"live: run {made['run_id']}" in shown
    check_readers(brought, shown)
    swept = done(run("maintenance", "--days", "0", "--keep", "0", "--delete", root=brought.root))
    assert json.loads(swept.stdout.splitlines()[-1])["deleted"]
    assert decisions(brought) == decisions(first_night[0])


def done(process: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert process.returncode == 0, process.stderr
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert s3.KEYS[name] not in process.stderr + process.stdout
    return process


def check_readers(lake: Lake, shown: str) -> None:
    """Run each line that `tables` prints in its own process."""
    rows = len(decisions(lake))
    lines = dict(re.findall(r"^  (\w+):\n    (.+)$", shown, re.MULTILINE))
    for engine in ("DuckDB", "pandas", "Polars", "Spark"):
        code = f"import pandas, polars, fsspec, duckdb\nprint(len({lines[engine]}))"
        if engine == "Spark":  # a session with the S3 options of the steps
            code = (
                "import fsspec\nfrom jobs.settings import Settings\nfrom jobs.spark.sessions import session\n"
                f"with session(Settings(), 0) as spark: print({lines[engine]}.count())"
            )
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False,
            env=os.environ | {"TAGGING_ROOT": str(lake.root)},
        )  # fmt: skip
        assert result.returncode == 0, f"{engine}: {result.stderr}"
        assert int(result.stdout) == rows, engine


@pytest.mark.long
def test_two_machines_train_one_version_and_resume_together(on_s3: AnyPath, tmp_path: Path) -> None:
    """The machines share only the lake: each has its own TMPDIR, and its own cache of frozen towers."""
    root: Any = on_s3
    s3_preflight.check(root, create=True)
    settings, lake = settings_of(tmp_path), Lake(on_s3)
    made = add_examples(Lake(tmp_path), RUN, drawn.examples(300))
    storage.send_folder(made, lake.examples(RUN), last="_manifest.json")
    document = drawn.config(epochs=3, freeze=("image",)).model_dump(mode="json")
    (tmp_path / "frozen.yaml").write_text(yaml.safe_dump(document))
    temporary = [tmp_path / f"machine-{rank}" for rank in range(2)]
    for folder in temporary:
        folder.mkdir()
    options = ["--root", str(on_s3), "--taxonomy", settings.taxonomy, "--model-config", str(tmp_path / "frozen.yaml")]
    command = [sys.executable, "-m", "jobs", *options, "--device", "cpu", "train", "--ds", RUN[:10]]

    def start() -> list[subprocess.Popen[str]]:
        port = str(s3.free_port())
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_RANK": "0"} | ONE_THREAD
        return [
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=os.environ | world | {"RANK": str(rank), "TMPDIR": str(folder)},
            )
            for rank, folder in enumerate(temporary)
        ]  # fmt: skip

    def left() -> list[list[str]]:
        return [sorted(path.name.split("-")[0] for path in f.glob("*/*/models/.unfinished-*/*")) for f in temporary]

    machines = start()
    while not any("checkpoint.pt" in names for names in left()):
        assert [machine.poll() for machine in machines] == [None, None]
        time.sleep(0.01)
    for machine in machines:
        machine.kill()
        machine.communicate()
    first, second = left()
    assert {"about.json", "checkpoint.pt", "frozen", "tensorboard"} <= set(first)
    assert second == ["frozen"]
    machines = start()
    (one, said), (other, _) = (machine.communicate(timeout=300) for machine in machines)
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert re.search(r"training resumes in epoch [23], after 0 examples", said)
    (version,) = registry.list_versions(lake.models)
    assert json.loads(one)["model_version"] == version
    assert other == ""
    assert left() == [[], []]
    assert storage.children(lake.model_reports(RUN[:10], version) / LOGS, "events.")
