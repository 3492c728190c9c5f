"""Rate of downloading pictures at import, beside `img2dataset` on the same local server and cores.

`python -m benchmarks.picture_download --pictures 20000 --img2dataset VENV/bin/img2dataset`: a server in a process of its own offers
JPEG files. Of a hundred, one is slow (half a second) and one is broken: not found, an HTML page, or cut. The tools run in turn,
twice each. Then a second day, on which one picture in a hundred differs, is imported. `img2dataset` keeps pictures as they are
(`--resize_mode no --skip_reencode True`). It needs an environment of its own, because it wants an older pandas.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from PIL import Image
from tqdm import tqdm

_SIZE = 240  # pixels of a side; about 20 KB as JPEG
_SLOW, _BROKEN = 7, 13  # of a hundred numbers, the slow and the broken one
_KINDS = ("not found", "page", "cut")


def _pictures(count: int) -> list[bytes]:
    """Return `count` JPEG files of drawn noise over a few colours."""
    draw = np.random.default_rng(7)
    files = []
    for _ in range(count):
        small = draw.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(small).resize((_SIZE, _SIZE)).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def _kind(number: int) -> str:
    if number % 100 == _BROKEN:
        return _KINDS[number // 100 % len(_KINDS)]
    return "slow" if number % 100 == _SLOW else "usual"


def _serve(port: Any, changed: Any) -> None:
    """Serve pictures until the process is ended. From `changed` on, every hundredth picture differs."""
    files = _pictures(200)

    def body(number: int) -> bytes:
        differs = changed.value and number % 100 == 50
        return files[number % len(files)] + f"{number} {int(differs)}".encode()  # bytes behind the end marker

    async def picture(request: web.Request) -> web.StreamResponse:
        number = int(request.match_info["number"])
        kind, data = _kind(number), body(number)
        if kind == "not found":
            return web.Response(status=404)
        if kind == "page":
            return web.Response(text="<html>sold out</html>", content_type="text/html")
        if kind == "slow":
            await asyncio.sleep(0.5)
        if kind == "cut":
            response = web.StreamResponse(headers={"Content-Length": str(len(data))})
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        tag = f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=data, content_type="image/jpeg", headers={"ETag": tag})

    async def run() -> None:
        application = web.Application()
        application.router.add_get("/{number}.jpg", picture)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.value = runner.addresses[0][1]
        await asyncio.Event().wait()

    asyncio.run(run())


def _import(lake: Path, export: Path, ds: str, port: int, connections: int) -> tuple[float, dict[str, Any]]:
    """Return the seconds of an import in a process of its own, and its manifest."""
    environment = os.environ | {
        "TAGGING_ROOT": str(lake), "TAGGING_PROGRESS": "false", "TAGGING_PICTURE_PRIVATE_HOSTS": f"http://127.0.0.1:{port}",
        "TAGGING_PICTURE_CONNECTIONS": str(connections),
    }  # fmt: skip
    begin = time.perf_counter()
    command = [sys.executable, "-m", "jobs", "import-catalog", export, "--ds", ds, "--mapping", export / "mapping.yaml"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    manifest = json.loads((lake / f"catalog/raw/ds={ds}/_manifest.json").read_text())
    return time.perf_counter() - begin, manifest


def _img2dataset(program: str, urls: Path, connections: int) -> tuple[float, int]:
    """Return the seconds of img2dataset, and the number of pictures that it kept."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        options = {
            "url_list": urls, "input_format": "txt", "output_folder": f"{folder}/out", "output_format": "files",
            "processes_count": os.cpu_count(), "thread_count": connections, "resize_mode": "no", "skip_reencode": True,
            "encode_format": "jpg", "retries": 2, "number_sample_per_shard": 5000, "enable_wandb": False,
        }  # fmt: skip
        subprocess.run(
            [program, *(f"--{name}={value}" for name, value in options.items())], check=True, capture_output=True
        )
        return time.perf_counter() - begin, sum(1 for _ in Path(folder).rglob("*.jpg"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pictures", type=int, default=20_000)
    arguments.add_argument("--connections", type=int, default=64, help="requests at once")
    arguments.add_argument(
        "--img2dataset", help="the program, in an environment of its own; without it, only ours runs"
    )
    given = arguments.parse_args()
    port, changed = multiprocessing.Value("i", 0), multiprocessing.Value("b", 0)
    server = multiprocessing.Process(target=_serve, args=(port, changed), daemon=True)
    server.start()
    while not port.value:
        time.sleep(0.05)
    numbers = list(range(given.pictures))
    random.Random(7).shuffle(numbers)
    expected = Counter(map(_kind, numbers))
    good = expected["usual"] + expected["slow"]
    rows: list[tuple[str, float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        export, urls = Path(folder) / "export", Path(folder) / "urls.txt"
        export.mkdir()
        addresses = [f"http://127.0.0.1:{port.value}/{number}.jpg" for number in numbers]
        urls.write_text("\n".join(addresses))
        lines = (f"{number},Shirt {number},{url}" for number, url in zip(numbers, addresses, strict=True))
        (export / "items.csv").write_text("\n".join(["id,title,photo", *lines]) + "\n")
        (export / "mapping.yaml").write_text(
            "{records: items.csv, product_id: id, title: title, picture_name: '{photo}'}"
        )
        lake = Path(folder) / "lake"
        for _ in tqdm(range(2), desc="rounds", leave=False):
            shutil.rmtree(lake, ignore_errors=True)
            seconds, manifest = _import(lake, export, "2026-11-20", port.value, given.connections)
            rows.append(("import", seconds, f"{manifest['pictures']}"))
            assert manifest["pictures"]["added"] == good, manifest["pictures"]
            if given.img2dataset:
                seconds, kept = _img2dataset(given.img2dataset, urls, given.connections)
                rows.append(("img2dataset", seconds, f"{kept} files of {good} good ones"))
        changed.value = 1
        seconds, manifest = _import(lake, export, "2026-11-21", port.value, given.connections)
        rows.append(("import, second day", seconds, f"{manifest['pictures']}"))
    server.terminate()
    print(f"{given.pictures:,} pictures, {given.connections} requests at once")
    for name, seconds, detail in rows:
        print(f"{name:20} {seconds:7.1f} s {given.pictures / seconds:8,.0f} pictures/s  {detail}")


if __name__ == "__main__":
    main()
