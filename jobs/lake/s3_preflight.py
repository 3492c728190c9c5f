"""Checks of the S3 location of a lake, run once before the work, so that a wrong setting is reported at once."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

from jobs.errors import JobError, TransientError
from jobs.lake import s3_files
from jobs.lake.s3_files import ConditionFailedError, ObjectVersion

if TYPE_CHECKING:
    from upath import UPath

MARK: Final = "_lake.json"  # marks a prefix as a lake whose server has passed the check for conditional writes
_FORMAT: Final = 1
# A failure is reported within half a minute.
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
    """Check that a lake exists at `root`.

    Args:
        root: bucket and prefix.
        create: create the lake if nothing exists at `root` yet.

    Raises:
        JobError: one of these is wrong, and the message names the setting:

            * The server does not answer, denies access, or does not support conditional writes.
            * The bucket does not exist.
            * `root` holds something else, or nothing without `create`.
    """
    quick = s3_files.s3_path(str(root), client=_CLIENT)
    quick.fs.retries = 1
    try:
        if s3_files.read(quick / MARK) is not None:
            return
        if any(entry.path.name != MARK for entry in s3_files.entries(quick)):
            raise JobError(
                f"{root} holds other objects, but no {MARK}: it is not a lake. Set TAGGING_ROOT to a prefix of its own, "
                "such as s3://bucket/catalog-lake"
            )
        if not create:
            raise JobError(
                f"{root}: no lake exists there yet; `python -m jobs import-catalog` makes it, or TAGGING_ROOT is wrong"
            )
        _write_mark(quick / MARK)
    except JobError:
        raise
    except Exception as error:
        if (explained := explain(error, str(root))) is None:
            raise
        raise explained from error


def _write_mark(mark: UPath) -> None:
    """Write the mark, and remove it again if the server ignores the conditions of writes.

    Raises:
        JobError: the server ignores a condition.
    """
    written = s3_files.put(mark, _content(), None)
    wrong = ObjectVersion(written.data, '"00000000000000000000000000000000"')
    for condition, replaces in (("If-None-Match", None), ("If-Match", wrong)):
        try:
            s3_files.put(mark, _content(), replaces)
        except ConditionFailedError:
            continue
        s3_files.remove([mark])
        raise JobError(
            f"{mark.parent}: its server ignores the condition {condition}. Publications of several processes would silently undo "
            "each other, so it cannot hold a lake. Use a server with conditional writes: AWS S3, MinIO, versitygw, ..."
        )


def _content() -> bytes:
    return json.dumps({"lake": "catalog-attribute-tagger", "format": _FORMAT, "id": uuid.uuid4().hex}).encode()


def explain(error: BaseException, where: str) -> JobError | None:
    """Return the meaning of an S3 error and the setting to correct, or None if it is not an S3 error."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    is_botocore = isinstance(error, exceptions.BotoCoreError | ResponseParserError)
    error_code, cause = s3_files.code(error), error if is_botocore else error.__cause__
    if error_code == "NoSuchBucket":
        return JobError(f"{where}: the bucket does not exist; create it, or correct TAGGING_ROOT")
    if error_code in _EXPIRED:
        return JobError(f"{where}: the credentials have expired; renew {_CREDENTIALS}")
    if error_code in _NOT_KNOWN:
        return JobError(f"{where}: the server does not know these credentials ({error_code}); correct {_CREDENTIALS}")
    if error_code in _DENIED:
        return JobError(
            f"{where}: no permission; allow these credentials to list, read, write and delete there ({_CREDENTIALS})"
        )
    answered = isinstance(cause, exceptions.ClientError)
    # The codes of S3 are words; a bare number comes from another kind of server.
    if (answered and not error_code.strip("0123456789")) or isinstance(cause, ResponseParserError):
        return JobError(f"{where}: the server there is not an S3 server; correct AWS_ENDPOINT_URL")
    if s3_files.status(error) in (401, 403):
        return JobError(f"{where}: the server does not know these credentials ({error_code}); correct {_CREDENTIALS}")
    if isinstance(cause, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return JobError(f"{where}: no credentials were found; set {_CREDENTIALS}")
    if isinstance(
        cause, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError | exceptions.ConnectionError
    ):
        return JobError(
            f"{where}: {cause}; correct AWS_ENDPOINT_URL, or make sure that its server runs and can be reached"
        )
    if isinstance(cause, exceptions.ReadTimeoutError | exceptions.HTTPClientError):
        return TransientError(
            f"{where}: the server does not answer in time: {cause}; try again, or check AWS_ENDPOINT_URL"
        )
    if isinstance(cause, exceptions.BotoCoreError | exceptions.ClientError):
        return TransientError(f"{where}: {cause}")
    return None


def s3_cause(error: BaseException) -> Any:
    """Return the S3 error in the chain of causes of `error`, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if s3_files.code(seen) or type(seen).__module__.startswith("botocore"):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
