"""Is there a lake where the settings say, and can it be one? Asked once, before the work, so that a wrong setting is told at once."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

from jobs.errors import JobError, TransientError
from jobs.lake import s3_files
from jobs.lake.s3_files import ConditionFailedError, Found

if TYPE_CHECKING:
    from upath import UPath

MARK: Final = "_lake.json"  # says that what is here is a lake, and that its server was tried
_FORMAT: Final = 1
# One answer decides, within half a minute whatever is wrong.
_CLIENT: Final = {"connect_timeout": 5, "read_timeout": 8, "retries": {"mode": "standard", "total_max_attempts": 2}}
_CREDENTIALS: Final = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (AWS_PROFILE), or the machine's role"
_NOT_KNOWN: Final = (
    "InvalidAccessKeyId",
    "XAdminUserNotFound",
    "SignatureDoesNotMatch",
    "AuthorizationHeaderMalformed",
    "InvalidToken",
)
_EXPIRED: Final = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_DENIED: Final = ("AccessDenied", "AllAccessDisabled")


def check(root: UPath, *, create: bool = False) -> None:
    """Check that there is a lake at `root`.

    Args:
        root: bucket and prefix.
        create: make one where there is nothing yet.

    Raises:
        JobError: the server does not answer, does not let us in, or cannot write on a condition; there is no such bucket; or there
            is something else at `root`. The message names the setting.
    """
    quick = s3_files.s3_path(str(root), client=_CLIENT)
    quick.fs.retries = 1
    try:
        if s3_files.read(quick / MARK) is not None:
            return
        if any(entry.path.name != MARK for entry in s3_files.entries(quick)):
            raise JobError(
                f"{root} holds something else: there is no {MARK} among it. Let TAGGING_ROOT name a prefix of its own, "
                "such as s3://bucket/catalog-lake"
            )
        if not create:
            raise JobError(
                f"{root}: there is no lake yet; `python -m jobs import-catalog` makes it, or TAGGING_ROOT is wrong"
            )
        _try(quick / MARK)
    except JobError:
        raise
    except Exception as error:
        if (found := explain(error, str(root))) is None:
            raise
        raise found from error


def _try(mark: UPath) -> None:
    """Write the mark, if the server writes on a condition; nothing is left where it does not."""
    made = s3_files.put(mark, _content(), None)
    wrong = Found(made.data, '"00000000000000000000000000000000"')
    for condition, replaces in (("If-None-Match", None), ("If-Match", wrong)):
        try:
            s3_files.put(mark, _content(), replaces)
        except ConditionFailedError:
            continue
        s3_files.remove([mark])
        raise JobError(
            f"{mark.parent}: its server writes whatever the condition {condition} says. Publications of several processes would "
            "silently undo each other, so there can be no lake. It takes a server with conditional writes: AWS S3, MinIO, versitygw, ..."
        )


def _content() -> bytes:
    return json.dumps({"lake": "catalog-attribute-tagger", "format": _FORMAT, "id": uuid.uuid4().hex}).encode()


def explain(error: BaseException, where: str) -> JobError | None:
    """Return what an error of S3 means and which setting it is about; None where it is none of S3."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    itself = isinstance(error, exceptions.BotoCoreError | ResponseParserError)
    why, cause = s3_files.code(error), error if itself else error.__cause__
    if why == "NoSuchBucket":
        return JobError(f"{where}: there is no such bucket; make it, or correct TAGGING_ROOT")
    if why in _EXPIRED:
        return JobError(f"{where}: the credentials have expired; renew {_CREDENTIALS}")
    if why in _NOT_KNOWN:
        return JobError(f"{where}: the server does not know these credentials ({why}); correct {_CREDENTIALS}")
    if why in _DENIED:
        return JobError(
            f"{where}: no permission; let these credentials list, read, write and delete there ({_CREDENTIALS})"
        )
    said = isinstance(cause, exceptions.ClientError)
    if (said and not why.strip("0123456789")) or isinstance(cause, ResponseParserError):  # S3 has words
        return JobError(f"{where}: what answers there is no S3 server; correct AWS_ENDPOINT_URL")
    if s3_files.status(error) in (401, 403):
        return JobError(f"{where}: the server does not know these credentials ({why}); correct {_CREDENTIALS}")
    if isinstance(cause, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return JobError(f"{where}: there are no credentials; set {_CREDENTIALS}")
    if isinstance(
        cause, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError | exceptions.ConnectionError
    ):
        return JobError(f"{where}: {cause}; correct AWS_ENDPOINT_URL, or see that its server runs and can be reached")
    if isinstance(cause, exceptions.ReadTimeoutError | exceptions.HTTPClientError):
        return TransientError(
            f"{where}: the server does not answer in time: {cause}; try again, or see AWS_ENDPOINT_URL"
        )
    if isinstance(cause, exceptions.BotoCoreError | exceptions.ClientError):
        return TransientError(f"{where}: {cause}")
    return None


def of(error: BaseException) -> Any:
    """Return the error of S3 that an error came from, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if s3_files.code(seen) or type(seen).__module__.startswith("botocore"):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
