"""docker-compose.yml: no service starts without its secrets, has more than its own, or may do more than it needs. Needs no engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
REQUIRED = set(re.findall(r"\$\{(\w+):\?run `make up`", TEXT))
# All that a service may know. What decodes strangers' pictures, Spark's workers, knows two.
SECRETS = {
    "postgres": {"POSTGRES_PASSWORD"},
    "redis": {"REDIS_PASSWORD"},
    "s3-volume": set(),
    "s3": {"S3_ACCESS_KEY", "S3_SECRET_KEY"},
    "init": {
        "FERNET_KEY", "POSTGRES_PASSWORD", "AIRFLOW_ADMIN_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY", "S3_TAGGER_SECRET",
        "S3_SPARK_SECRET", "S3_READER_SECRET", "SPARK_SECRET",
    },
    "api-server": {"FERNET_KEY", "POSTGRES_PASSWORD", "JWT_SECRET", "API_SECRET_KEY", "S3_READER_SECRET"},
    "scheduler": {"FERNET_KEY", "POSTGRES_PASSWORD", "JWT_SECRET", "REDIS_PASSWORD"},
    "dag-processor": {"FERNET_KEY", "POSTGRES_PASSWORD", "S3_READER_SECRET"},
    "triggerer": {"FERNET_KEY", "POSTGRES_PASSWORD", "JWT_SECRET", "S3_READER_SECRET"},
    "worker": {"REDIS_PASSWORD", "S3_TAGGER_SECRET", "SPARK_SECRET"},
    "worker-gpu": {"REDIS_PASSWORD", "S3_TAGGER_SECRET"},
    "spark-master": {"SPARK_SECRET"},
    "spark-worker": {"SPARK_SECRET", "S3_SPARK_SECRET"},
}  # fmt: skip


def env_file(folder: Path) -> dict[str, str]:
    """Return what `make up` writes into .env."""
    folder.mkdir(exist_ok=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["make", "-C", folder, ".env"], check=True, capture_output=True)
    assert (folder / ".env").stat().st_mode & 0o077 == 0
    return dict(line.split("=", 1) for line in (folder / ".env").read_text().splitlines())


def test_every_secret_is_made_and_none_is_made_twice(tmp_path: Path) -> None:
    made, again = env_file(tmp_path / "a"), env_file(tmp_path / "b")
    assert made.keys() == REQUIRED
    assert all(len(value) >= 40 for value in made.values())
    assert len({*made.values(), *again.values()}) == 2 * len(REQUIRED)


def test_an_env_file_of_an_earlier_release_gets_what_it_lacks_and_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=as-the-database-knows-it\nUI_PORT=8090\nJWT_SECRET=\n")
    (tmp_path / ".env").chmod(0o644)
    made = env_file(tmp_path)
    assert made.keys() == REQUIRED | {"UI_PORT"}
    assert (made["POSTGRES_PASSWORD"], made["UI_PORT"]) == ("as-the-database-knows-it", "8090")
    assert len(made["JWT_SECRET"]) >= 40
    assert env_file(tmp_path) == made


def test_no_secret_has_a_value_that_works_by_default() -> None:
    for name in REQUIRED:
        assert not re.search(rf"\$\{{{name}:?-", TEXT), name
    given = [
        f"{key}: {value}"
        for service in SERVICES.values()
        for key, value in service.get("environment", {}).items()
        if re.search("PASSWORD|SECRET|FERNET", key) and not key.endswith("_FILE")
    ]
    assert given
    assert [each for each in given if "${" not in each] == []


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_knows_its_own_secrets_alone(name: str) -> None:
    used = set(re.findall(r"\$\{(\w+)", yaml.safe_dump(SERVICES[name])))
    assert used & REQUIRED == SECRETS[name]
    assert "env_file" not in SERVICES[name]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_may_do_no_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert set(service.get("cap_add", ())) <= (
        {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"} if name == "postgres" else set()
    )
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "privileged" not in service
    assert not {"pid", "ipc", "devices", "userns_mode"} & service.keys()
    for mount in service.get("volumes", ()):
        assert "docker.sock" not in mount
        assert re.fullmatch(r"([a-z0-9-]+:)?/[a-z0-9/]+", mount), f"{mount} is a folder of the machine"
    ports = service.get("ports", [])
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert bool(ports) == (name == "api-server")


def test_what_decodes_strangers_pictures_reaches_neither_the_database_nor_airflow() -> None:
    networks = {name: set(service.get("networks", ())) for name, service in SERVICES.items()}
    reached = {name for name in SERVICES if networks[name] & networks["spark-worker"]}
    assert reached == {"spark-worker", "spark-master", "s3", "worker", "init"}
    assert yaml.safe_load(TEXT)["networks"]["spark"] == {"internal": True}
    assert SERVICES["spark-worker"]["volumes"] == ["/work"]  # a place of its own, shared with nobody


@pytest.mark.parametrize("name", ["init", "worker", "spark-master", "spark-worker"])
def test_spark_asks_for_its_secret_and_no_list_of_processes_shows_it(name: str, tmp_path: Path) -> None:
    """The entrypoint, run by a shell as the container does."""
    *_, script, zeroth = SERVICES[name]["entrypoint"]
    assert SERVICES[name]["entrypoint"][:5] == ["tini", "--", "sh", "-c", script]
    done = subprocess.run(
        ["sh", "-c", script.replace("$$", "$"), zeroth, "sh", "-c", 'echo "$1 ${SPARK_SECRET:-none}"; umask', "-", "argument"],
        env={"PATH": os.environ["PATH"], "SPARK_SECRET": "the-secret", "SPARK_CONF_DIR": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["argument", "none", "0022"]
    file = tmp_path / "spark-defaults.conf"
    assert file.stat().st_mode & 0o777 == 0o600
    options = dict(line.split(" ", 1) for line in file.read_text().splitlines())
    assert options["spark.authenticate"] == "true"
    assert options["spark.authenticate.secret"] == "the-secret"
    assert SERVICES[name]["environment"]["SPARK_CONF_DIR"] == "/run/spark"
    assert "/run/spark:uid=1000,mode=0700" in SERVICES[name]["tmpfs"]


def test_people_have_roles() -> None:
    for name in ("api-server", "init"):
        assert SERVICES[name]["environment"]["AIRFLOW__CORE__AUTH_MANAGER"].endswith(".FabAuthManager")
    assert "SIMPLE_AUTH_MANAGER" not in TEXT


def test_images_can_be_named_by_their_digest() -> None:
    for name, service in SERVICES.items():
        if service["image"] != "catalog-attribute-tagger":
            assert re.fullmatch(r"\$\{[A-Z0-9]+_IMAGE:-[a-z/0-9]+:[a-z0-9.-]+\}", service["image"]), name
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2


@pytest.mark.parametrize("missing", sorted(REQUIRED))
@pytest.mark.parametrize("how", ["left out", "empty"])
def test_compose_refuses_an_env_file_without_a_secret(missing: str, how: str, tmp_path: Path) -> None:
    plugin = (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )
    if not plugin and not shutil.which("docker-compose"):
        pytest.skip("needs docker compose")
    (tmp_path / ".env").write_text(
        "".join(f"{name}=x\n" for name in REQUIRED - {missing}) + f"{missing}=\n" * (how == "empty")
    )
    done = subprocess.run(
        [*(["docker", "compose"] if plugin else ["docker-compose"]), "--env-file", tmp_path / ".env", "config"],
        cwd=ROOT, env={name: value for name, value in os.environ.items() if name not in REQUIRED}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert missing in done.stderr
    assert "make up" in done.stderr
