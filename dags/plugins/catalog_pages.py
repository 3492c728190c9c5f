"""Airflow plugin: serves the pages that the jobs write (reports, Data Docs, labelled sets), to people who are logged in.

They are behind the button *Report* of a task. Nothing else of the lake is served. The pages hold texts of the shop's
catalog, so they are sandboxed: whatever is in them cannot act as the person who looks at them.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Final

from airflow.api_fastapi.core_api.security import GetUserDep
from airflow.plugins_manager import AirflowPlugin
from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response

from jobs import storage
from jobs.settings import Settings

FOLDERS: Final = ("reports", "labelled")  # of the lake
HEADERS: Final = {"Content-Security-Policy": "sandbox allow-scripts allow-popups", "X-Content-Type-Options": "nosniff"}

app = FastAPI(title="Pages of the catalog tagger", openapi_url=None)


@app.get("/{path:path}")
def page(path: str, user: GetUserDep) -> Response:  # noqa: ARG001 - nobody gets here who is not logged in
    """Return a file of the served folders; 404 for all else, links that lead out of the lake included."""
    root = Settings().root
    if not storage.on_disk(root):
        steps = path.split("/")
        data = None
        if steps[0] in FOLDERS and not any(not step or step.startswith(".") for step in steps):
            data = storage.read_bytes(root / path)
        if data is None:
            raise HTTPException(404)
        return Response(data, media_type=mimetypes.guess_type(path)[0], headers=HEADERS)
    try:
        file = (root / path).resolve()
    except ValueError:  # a name that can be no file's
        raise HTTPException(404) from None
    if Path(path).parts[:1] not in [(folder,) for folder in FOLDERS] or not any(
        file.is_relative_to(root / folder) for folder in FOLDERS
    ):
        raise HTTPException(404)
    if not file.is_file() or any(part.startswith(".") for part in file.relative_to(root).parts):
        raise HTTPException(404)
    return FileResponse(file, headers=HEADERS)


class CatalogPages(AirflowPlugin):
    """What Airflow's API server takes from here."""

    name = "catalog_pages"
    fastapi_apps = [{"app": app, "url_prefix": "/catalog", "name": "Pages of the catalog tagger"}]  # noqa: RUF012
