"""Open the downloads of an import, as the settings say."""

from __future__ import annotations

import contextlib
import threading

from jobs.importing.web.addresses import AllowedHosts
from jobs.importing.web.download_log import DownloadLog
from jobs.importing.web.downloader import DownloadLimits, PictureDownloads, PictureWriter
from jobs.lake.layout import Lake
from jobs.settings import Settings


def open_downloads(
    settings: Settings,
    lake: Lake,
    ds: str,
    writer: PictureWriter,
    stack: contextlib.ExitStack,
    writing: threading.Lock,
) -> PictureDownloads:
    """Return started downloads of pictures for the catalog of the day `ds`, usable while `stack` is open.

    Args:
        writer: writes pictures into the lake.
        writing: held while `writer` is used.
    """
    proxy = settings.picture_proxy.get_secret_value() if settings.picture_proxy else None
    downloads = PictureDownloads(
        AllowedHosts(settings.picture_hosts, settings.picture_private_hosts),
        DownloadLog(lake.picture_addresses, stack),
        writer,
        writing,
        lake.pictures,
        ds,
        DownloadLimits(connections=settings.picture_connections, proxy=proxy),
        settings.progress,
    )
    downloads.start(stack)
    return downloads
