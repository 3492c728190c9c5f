"""`make test TESTS=tests/jobs/importing/web`."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from PIL import Image

from jobs.importing.import_catalog import import_catalog
from jobs.importing.web import downloader
from jobs.lake.layout import Lake
from jobs.settings import Settings
from schemas.documents import RawManifest

MAPPING = 'records: [items.jsonl]\nproduct_id: id\ntitle: title\npicture_name: "{photo}"\noptional: [photo]\n'


def jpeg(number: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 200, 10)).save(data, "JPEG", comment=str(number))
    return data.getvalue()


Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """A server of pictures that counts what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.conditional: Counter[str] = Counter()
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        self.server.conditional[self.path] += "If-None-Match" in self.headers or "If-Modified-Since" in self.headers
        self.server.answers.get(self.path, status(404))(self)

    def log_message(self, *_: Any) -> None:
        pass


def body(data: bytes, code: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    return answer


def status(code: int, **headers: str) -> Answer:
    return body(b"", code, **headers)


def with_etag(data: bytes, etag: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        same = request.headers.get("If-None-Match") == etag
        (status(304) if same else body(data, ETag=etag))(request)

    return answer


def in_turn(*answers: Answer) -> Answer:
    left = list(answers)
    return lambda request: (left.pop(0) if len(left) > 1 else left[0])(request)


class Shop:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.export = folder / "export"
        self.export.mkdir()
        (folder / "mapping.yaml").write_text(MAPPING)
        self.mapping = folder / "mapping.yaml"
        self.settings = Settings(root=folder / "lake", progress=False, **settings)
        self.lake = Lake(self.settings.root)

    def run(self, *photos: Any, ds: str = "2026-11-20") -> RawManifest:
        rows = [{"id": f"p{i}", "title": f"Shirt {i}", "photo": photo} for i, photo in enumerate(photos)]
        (self.export / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return import_catalog(self.settings, self.export, ds, str(self.mapping))

    def records(self, ds: str = "2026-11-20") -> list[dict[str, Any]]:
        lines = [
            line
            for part in sorted(self.lake.raw(ds).glob("part-*"))
            for line in gzip.decompress(part.read_bytes()).splitlines()
        ]
        return [json.loads(line) for line in lines]

    def stored(self, record: dict[str, Any]) -> bytes:
        return (self.lake.pictures / record["image_uri"]).read_bytes()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def shop(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(downloader, "FIRST_WAIT", 0.02)
    return Shop(tmp_path, picture_private_hosts=(f"http://{server.host}",))


def test_pictures_are_stored_by_their_hash_in_the_order_of_the_rows(server: Server, shop: Shop) -> None:
    data = {f"/{i}.jpg": jpeg(i) for i in range(40)}
    server.answers = {path: body(each) for path, each in data.items()}
    manifest = shop.run(*map(server.url, data))
    records = shop.records()
    assert [shop.stored(record) for record in records] == list(data.values())
    assert [record["image_version"] for record in records] == [hashlib.sha1(each).hexdigest() for each in data.values()]
    assert manifest.pictures == {"added": 40}
    assert not manifest.picture_failures


def test_without_a_setting_no_host_is_asked_and_the_hosts_are_named(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shop = Shop(tmp_path)
    manifest = shop.run(server.url("/1.jpg"), server.url("/2.jpg"), "https://cdn.shop.example/3.jpg")
    assert not server.asked
    assert manifest.pictures == {"host_not_allowed": 3}
    assert f"TAGGING_PICTURE_HOSTS names; seen: http://{server.host} (2), https://cdn.shop.example (1)" in caplog.text
    assert all(record["image_uri"].startswith("missing/") for record in shop.records())


def test_an_allowed_host_in_a_private_network_is_not_asked(server: Server, tmp_path: Path) -> None:
    port = server.server_address[1]
    shop = Shop(
        tmp_path, picture_hosts=(f"http://localhost:{port}", f"http://127.0.0.1:{port}", f"http://2130706433:{port}")
    )
    hosts = ("localhost", "127.0.0.1", "2130706433")
    manifest = shop.run(*(f"http://{host}:{port}/1.jpg" for host in hosts))
    assert not server.asked
    assert manifest.pictures == {"forbidden": 3}
    assert set(manifest.picture_failures) == set(hosts)


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "http://localhost/x.jpg", "file:///etc/passwd"])
def test_a_redirect_to_a_host_that_is_not_allowed_is_not_followed(server: Server, shop: Shop, target: str) -> None:
    server.answers["/1.jpg"] = status(302, Location=target)
    manifest = shop.run(server.url("/1.jpg"))
    assert manifest.pictures.keys() <= {"host_not_allowed", "forbidden"}
    assert server.asked == {"/1.jpg": 1}


def test_a_redirect_to_link_local_is_refused_even_from_hosts_that_may_be_private(
    server: Server, tmp_path: Path
) -> None:
    shop = Shop(tmp_path, picture_private_hosts=(f"http://{server.host}", "http://169.254.169.254"))
    server.answers["/1.jpg"] = status(302, Location="http://169.254.169.254/latest/meta-data")
    assert shop.run(server.url("/1.jpg")).pictures == {"forbidden": 1}


def test_a_redirect_within_the_allowed_hosts_is_followed_and_a_circle_ends(server: Server, shop: Shop) -> None:
    server.answers = {
        "/1.jpg": status(301, Location="/new/1.jpg"),
        "/new/1.jpg": body(jpeg(1)),
        "/o": status(302, Location="/o"),
    }
    manifest = shop.run(server.url("/1.jpg"), server.url("/o"))
    assert manifest.pictures == {"added": 1, "unreachable": 1}
    assert server.asked["/o"] == 6


def test_broken_answers_cost_only_their_picture(server: Server, shop: Shop) -> None:
    whole = jpeg(7)
    server.answers = {
        "/page": body(b"<!doctype html><title>Log in</title>", Content_Type="image/jpeg"),
        "/empty": body(b""),
        "/short": body(whole[:-9], Content_Length=str(len(whole)), Connection="close"),
        "/bomb": body(gzip.compress(b"\xff\xd8\xff" + bytes(40 * 2**20)), Content_Encoding="gzip"),
        "/large": body(b"", Content_Length=str(40 * 2**20), Connection="close"),
        "/gzip": body(gzip.compress(whole), Content_Encoding="gzip"),
        "/typed": body(whole, Content_Type="text/html"),
    }
    paths = ["/page", "/empty", "/short", "/bomb", "/large", "/gone", "/gzip", "/typed"]
    manifest = shop.run(*map(server.url, paths))
    assert manifest.pictures == {
        "broken": 1, "empty": 1, "unreachable": 1, "too_large": 2, "missing": 1, "added": 1, "known": 1
    }  # fmt: skip
    assert manifest.picture_failures["127.0.0.1"] == {
        "broken: not a picture: an HTML page": 1,
        "empty: the server sent no bytes": 1,
        "unreachable: the connection ended before the picture did": 1,
        "too_large": 2,
        "missing: HTTP 404": 1,
    }
    assert [shop.stored(record) for record in shop.records()[-2:]] == [whole, whole]
    assert server.asked["/short"] == 4
    assert server.asked["/gone"] == 1


def test_a_busy_server_is_asked_again_after_the_time_that_it_names(server: Server, shop: Shop) -> None:
    server.answers["/1.jpg"] = in_turn(status(429, Retry_After="1"), status(503), body(jpeg(1)))
    begin = time.monotonic()
    assert shop.run(server.url("/1.jpg")).pictures == {"added": 1}
    assert 1 <= time.monotonic() - begin < 10
    assert server.asked["/1.jpg"] == 3


def test_a_slow_server_costs_its_pictures_only(server: Server, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloader, "TOTAL", 0.3)
    server.answers = {"/slow": lambda _: time.sleep(2), "/1.jpg": body(jpeg(1))}
    manifest = shop.run(server.url("/slow"), server.url("/1.jpg"))
    assert manifest.pictures == {"unreachable": 1, "added": 1}
    assert manifest.picture_failures == {"127.0.0.1": {"unreachable: time limit exceeded": 1}}


def test_the_second_day_asks_for_changes_only(server: Server, shop: Shop) -> None:
    server.answers = {
        "/same": with_etag(jpeg(1), '"a"'),
        "/new": with_etag(jpeg(2), '"b"'),
        "/fresh": body(jpeg(4), Cache_Control="public, max-age=86400"),
        "/plain": body(jpeg(5)),
    }
    urls = list(map(server.url, server.answers))
    assert shop.run(*urls).pictures == {"added": 4}
    server.answers["/new"] = with_etag(jpeg(3), '"c"')
    assert shop.run(*urls, ds="2026-11-21").pictures == {"added": 1, "known": 3}
    assert server.asked == {"/same": 2, "/new": 2, "/fresh": 1, "/plain": 2}
    assert server.conditional == {"/same": 1, "/new": 1, "/fresh": 0, "/plain": 0}
    assert [shop.stored(record) for record in shop.records("2026-11-21")] == [jpeg(1), jpeg(3), jpeg(4), jpeg(5)]


def test_a_host_that_fails_keeps_the_picture_of_the_day_before(server: Server, shop: Shop) -> None:
    server.answers["/1.jpg"] = body(jpeg(1))
    shop.run(server.url("/1.jpg"))
    server.answers["/1.jpg"] = status(500)
    manifest = shop.run(server.url("/1.jpg"), ds="2026-11-21")
    assert manifest.pictures == {"kept": 1}
    assert manifest.lost_pictures == 0
    assert manifest.picture_failures == {"127.0.0.1": {"unreachable: HTTP 500": 1}}
    assert shop.stored(shop.records("2026-11-21")[0]) == jpeg(1)


def test_a_picture_that_the_lake_lost_is_downloaded_again(server: Server, shop: Shop) -> None:
    server.answers["/1.jpg"] = with_etag(jpeg(1), '"a"')
    shop.run(server.url("/1.jpg"))
    (shop.lake.pictures / shop.records()[0]["image_uri"]).unlink()
    assert shop.run(server.url("/1.jpg"), ds="2026-11-21").pictures == {"added": 1}
    assert shop.stored(shop.records("2026-11-21")[0]) == jpeg(1)


def test_several_pictures_keep_the_order_of_the_shop_in_each_form(server: Server, shop: Shop) -> None:
    server.answers = {f"/{i}.jpg": body(jpeg(i)) for i in (1, 2)}
    gone, first, second = (server.url(f"/{i}.jpg") for i in range(3))
    forms = [
        [gone, second, first],
        f"{gone}, {second}, {first}",
        f"{gone},{second}|{first}",
        json.dumps([gone, second, first]),
    ]
    manifest = shop.run(*forms)
    digests = [hashlib.sha1(jpeg(i)).hexdigest() for i in (2, 1)]
    for record in shop.records():
        assert record["image_uris"][0].startswith("missing/")
        assert [uri.partition("/")[2].partition(".")[0] for uri in record["image_uris"][1:]] == digests
        assert (record["image_uri"], record["image_version"]) == (record["image_uris"][1], digests[0])
    assert manifest.pictures == {"missing": 4, "added": 2, "known": 6}
    assert server.asked == {"/0.jpg": 1, "/1.jpg": 1, "/2.jpg": 1}


def test_a_host_that_never_answers_is_given_up(server: Server, shop: Shop) -> None:
    server.answers = {f"/{i}": status(503) for i in range(200)}
    manifest = shop.run(*(server.url(f"/{i}") for i in range(200)))
    assert manifest.pictures == {"unreachable": 200}
    assert sum(server.asked.values()) < 4 * 100
    assert sum(manifest.picture_failures["127.0.0.1"].values()) == 200


def test_a_killed_import_is_resumed_without_asking_again(server: Server, shop: Shop) -> None:
    go = threading.Event()
    server.answers = {f"/{i}": body(jpeg(i)) for i in range(100)}
    server.answers["/last"] = lambda request: (go.wait(30), body(jpeg(200))(request))[0]
    urls = [*(server.url(f"/{i}") for i in range(100)), server.url("/last")]
    (shop.export / "items.jsonl").write_text(
        "".join(json.dumps({"id": f"p{i}", "title": "Shirt", "photo": url}) + "\n" for i, url in enumerate(urls))
    )
    code = (
        "import sys; from pathlib import Path; from jobs.importing.web import downloader; downloader.FLUSH_SECONDS = 0.05\n"
        "from jobs.importing.import_catalog import import_catalog; from jobs.settings import Settings\n"
        "import_catalog(Settings(progress=False), Path(sys.argv[1]), '2026-11-20', sys.argv[2])"
    )
    environment = os.environ | {
        "TAGGING_ROOT": str(shop.settings.root),
        "TAGGING_PICTURE_PRIVATE_HOSTS": f"http://{server.host}",
    }
    process = subprocess.Popen([sys.executable, "-c", code, str(shop.export), str(shop.mapping)], env=environment)
    deadline = time.monotonic() + 30
    while sum(server.asked.values()) < 101 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sum(server.asked.values()) == 101
    go.set()
    assert not shop.lake.raw_manifest("2026-11-20").exists()
    assert shop.run(*urls).pictures_named == 101
    assert sum(server.asked.values()) < 101 + 20  # all but the last few, whose record was not yet written
    assert len(shop.records()) == 101
    assert len(list(shop.lake.picture_addresses.iterdir())) == 1


@pytest.mark.parametrize("how", ["cut", "changed", "of another table"])
def test_a_damaged_record_of_downloads_is_said_and_its_pictures_are_asked_for_again(
    server: Server, shop: Shop, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    server.answers = {f"/{i}": with_etag(jpeg(i), '"a"') for i in range(60)}
    urls = list(map(server.url, server.answers))
    shop.run(*urls)
    (file,) = shop.lake.picture_addresses.iterdir()
    data = file.read_bytes()
    if how == "of another table":
        pq.write_table(pa.table({"address": urls}), file)
    else:
        file.write_bytes(data[: len(data) // 2] if how == "cut" else data[:50] + bytes(500) + data[550:])
    assert shop.run(*urls, ds="2026-11-21").pictures == {"known": 60}
    assert f"{file}: it is damaged, so its pictures are asked for again: " in caplog.text
    assert [shop.stored(record) for record in shop.records("2026-11-21")] == [jpeg(i) for i in range(60)]
    (whole,) = shop.lake.picture_addresses.iterdir()
    assert pq.read_table(whole).column("address").to_pylist() == sorted(urls)


def test_a_lake_on_s3_holds_the_pictures_and_what_a_second_day_needs(
    server: Server, tmp_path: Path, on_s3: Any
) -> None:
    server.answers = {f"/{i}": with_etag(jpeg(i), '"a"') for i in range(20)}
    urls = list(map(server.url, server.answers))
    shop = Shop(tmp_path, picture_private_hosts=(f"http://{server.host}",))
    shop.settings = shop.settings.model_copy(update={"root": on_s3})
    shop.lake = Lake(on_s3)
    assert shop.run(*urls).pictures == {"added": 20}
    server.answers["/3"] = with_etag(jpeg(300), '"b"')
    assert shop.run(*urls, ds="2026-11-21").pictures == {"added": 1, "known": 19}
    assert sum(server.conditional.values()) == 20
    records = shop.records("2026-11-21")
    assert [shop.stored(record) for record in records] == [jpeg(300 if i == 3 else i) for i in range(20)]
    files = [path for path in shop.lake.picture_addresses.iterdir() if path.name.endswith(".parquet")]
    assert len(files) == 1
    files[0].write_bytes(b"PAR1")
    assert shop.run(*urls, ds="2026-11-22").pictures == {"known": 20}
    assert sum(server.conditional.values()) == 20


class _Proxy(BaseHTTPRequestHandler):
    """A proxy that sends every tunnel to one server, as if that were the host, and every plain request too."""

    protocol_version = "HTTP/1.1"
    targets: list[str]
    upstream: tuple[str, int]

    def do_CONNECT(self) -> None:
        self.targets.append(f"CONNECT {self.path} {self.headers.get('Proxy-Authorization')}")
        with socket.create_connection(self.upstream) as upstream:
            self.send_response(200)
            self.end_headers()
            self.connection.settimeout(5)
            upstream.settimeout(5)
            sockets = [self.connection, upstream]
            while ready := select.select(sockets, [], [], 5)[0]:
                for source in ready:
                    data = source.recv(2**16)
                    if not data:
                        self.close_connection = True
                        return
                    sockets[source is self.connection].sendall(data)

    def do_GET(self) -> None:
        self.targets.append(f"GET {self.path}")
        body(jpeg(5))(self)

    def log_message(self, *_: Any) -> None:
        pass


def _certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """Write a key, and a certificate of `host` that it signs; return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "certificate.pem", folder / "key.pem"


def test_a_proxy_makes_every_connection_and_checks_of_certificates_stay_ours(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloader, "FIRST_WAIT", 0.01)
    certificate, key = _certificate(tmp_path, "cdn.shop.example")
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate, key)
    server.socket = served.wrap_socket(server.socket, server_side=True)
    server.answers["/1.jpg"] = body(jpeg(1))
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", trusting)
    handler = type("Handler", (_Proxy,), {"targets": [], "upstream": ("127.0.0.1", server.server_address[1])})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        shop = Shop(
            tmp_path,
            picture_hosts=("cdn.shop.example", "other.example", "http://plain.example"),
            picture_proxy=f"http://user:word@127.0.0.1:{proxy.server_address[1]}",
        )
        urls = ("https://cdn.shop.example/1.jpg", "https://other.example/1.jpg", "http://plain.example/5.jpg")
        manifest = shop.run(*urls, "https://10.0.0.1/1.jpg")
        proxy.shutdown()
    assert [shop.stored(record) for record in shop.records()[::2][:2]] == [jpeg(1), jpeg(5)]
    assert manifest.pictures == {"added": 2, "unreachable": 1, "host_not_allowed": 1}
    assert manifest.picture_failures["other.example"] == {"unreachable: the certificate is not valid": 1}
    login = "Basic " + base64.b64encode(b"user:word").decode()
    assert set(handler.targets) == {  # type: ignore[attr-defined]
        f"CONNECT cdn.shop.example:443 {login}", f"CONNECT other.example:443 {login}", "GET http://plain.example/5.jpg"
    }  # fmt: skip
