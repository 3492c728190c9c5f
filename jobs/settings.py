"""Settings of every job: defaults, ``TAGGING_*`` environment variables, then command-line flags."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field, PlainSerializer, PlainValidator, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.lake import storage
from jobs.lake.layout import Lake
from jobs.lake.storage import AnyPath


def _parse_path(value: object) -> AnyPath:
    """Return the path that a setting names. Raises ValueError if it is neither a folder nor on S3."""
    if not isinstance(value, str | Path):
        return cast(AnyPath, value)
    if (problem := storage.forbidden(str(value))) is not None:
        raise ValueError(problem)
    scheme, separator, rest = (
        ("", "", "") if isinstance(value, Path) else value.removeprefix("file://").partition("://")
    )
    if not separator:
        folder = _folder(value)
        if (problem := storage.forbidden(str(folder))) is not None:  # a parent folder or the target of a link
            raise ValueError(problem)
        return folder
    if scheme not in ("s3", "s3a"):
        raise ValueError(f"{value!r}: give a folder, or s3://bucket/prefix; {scheme}:// is not supported")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()=-]+)*/?", rest) or re.search(
        r"/\.\.?/", f"/{rest}/"
    ):
        raise ValueError(f"{value!r} is not of the form s3://bucket/prefix")
    return storage.as_path(f"s3://{rest.rstrip('/')}")


if TYPE_CHECKING:
    Root: TypeAlias = AnyPath
else:
    Root = Annotated[Any, PlainValidator(_parse_path), PlainSerializer(str)]


def _folder(value: str | Path) -> Path:
    """Return the folder that a setting names, with links resolved. Raises ValueError if it cannot be a folder."""
    name = str(value)
    named = Path(name.removeprefix("file://"))
    # An empty name, as from an unset variable, would mean the current folder.
    if not isinstance(value, Path) and (not name.strip() or name != name.strip()):
        raise ValueError(f"{name!r}: give the name of a folder, without blanks around it")
    if name.startswith("file://") and not named.is_absolute():
        raise ValueError(f"{name!r}: give file:///folder, or the folder alone")
    try:
        folder = named.expanduser().resolve()
    except RuntimeError as error:  # no such user, or links in a circle
        raise ValueError(f"{name!r}: {error}") from None
    with contextlib.suppress(PermissionError):  # reported later, by the step that needs the folder
        existing = next((each for each in (folder, *folder.parents) if each.exists()), folder)
        if existing.exists() and not existing.is_dir():
            raise ValueError(f"{name!r}: {existing} is not a folder; give a folder")
    return folder


Candidate: TypeAlias = Literal["bag-of-words", "picture-features", "cma-clip"]


class Settings(BaseSettings):
    """All settings. The variable of each has the prefix TAGGING_: ``TAGGING_ROOT=/data/lake`` sets `root`."""

    model_config = SettingsConfigDict(env_prefix="TAGGING_", frozen=True)

    root: Root = Field(
        default=Path("lake"), validate_default=True, description="the lake: a folder, or s3://bucket/prefix"
    )
    picture_roots: Annotated[tuple[Root, ...], NoDecode] = Field(
        default=(),
        description="folders or s3:// prefixes that pictures may be read from, comma-separated, beside the lake's own folder",
    )
    taxonomy: str = Field(default="sample", description="taxonomy to train with: a shipped name or a YAML file")
    rules: str = Field(default="default", description="data-quality rules: a shipped name or a YAML file")
    model_config_name: str = Field(default="sample", description="model to train: a shipped name or a YAML file")
    candidates: Annotated[tuple[Candidate, ...], NoDecode] = Field(
        default=("bag-of-words", "picture-features", "cma-clip"),
        min_length=1,
        description="methods that `train` tries, comma-separated; each attribute is answered by the best of them",
    )
    shard_rows: int = Field(default=20_000, ge=1, description="maximum number of products in a shard")
    task_rows: int = Field(default=1, ge=1, description="products that a task should tag; smaller shards share a task")
    batch_size: int = Field(default=256, ge=1, description="products in a forward pass of `tag`")
    max_retag_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="maximum share of the day's products that a night retags for a new model only",
    )
    max_removed_share: float = Field(
        default=0.2, ge=0, le=1, description="maximum share of the published products that a night removes by itself"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="cuda fails without a GPU")
    spark_master: str = Field(default="local[*]", description="where Spark runs")
    spark_memory: str = Field(default="2g", description="heap size of Spark's driver")
    spark_options: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="further Spark options as a JSON object; they override the defaults"
    )
    max_unpacked_gb: float = Field(
        default=64,
        gt=0,
        allow_inf_nan=False,
        description="maximum unpacked size of an export's packed file, in gigabytes",
    )
    max_unpacked_ratio: int = Field(
        default=200, ge=1, description="maximum unpacked bytes per packed byte, beyond the first gigabyte"
    )
    progress: bool = Field(default=True, description="show progress bars")
    # Alerts about nights that failed or are late. These settings hold addresses and passwords: never on a command line.
    alert_webhook: SecretStr | None = Field(default=None, description="URL that receives a JSON object with `text`")
    alert_to: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="mail addresses, comma-separated; needs alert_smtp"
    )
    alert_from: str = Field(default="catalog-tagger@localhost", description="sender of the mails")
    alert_smtp: SecretStr | None = Field(
        default=None, description="smtp://user:password@host:587 (STARTTLS if a user is given) or smtps://..."
    )

    @field_validator("spark_options", mode="before")
    @classmethod
    def _parse_spark_options(cls, value: object) -> object:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(
                    f'{value!r} is not a JSON object such as {{"spark.executor.cores": "4"}}: {error}'
                ) from None
        return value

    @field_validator("spark_options")
    @classmethod
    def _check_spark_options(cls, value: dict[str, str]) -> dict[str, str]:
        if others := [name for name in value if not name.startswith("spark.")]:
            raise ValueError(f"Spark options begin with 'spark.'; these do not: {', '.join(others)}")
        return value

    @field_validator("picture_roots", "alert_to", "candidates", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part for part in value.split(",") if part] if isinstance(value, str) else value

    def variables(self) -> dict[str, str]:
        """Return the settings that the environment or flags gave as TAGGING_* variables, without secrets."""
        variables = {}
        for name in sorted(self.model_fields_set):
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                continue
            if isinstance(value, dict):
                value = json.dumps(value)
            variables[f"TAGGING_{name.upper()}"] = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return variables

    @property
    def all_picture_roots(self) -> tuple[AnyPath, ...]:
        """The folders that pictures may be read from. Relative URIs belong to the first one, the lake's own."""
        return (Lake(self.root).pictures, *self.picture_roots)
