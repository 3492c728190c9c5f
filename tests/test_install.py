"""The installer, as far as a test can try it without an installation. `make test TESTS=tests/test_install.py`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TOOLS = ("bash", "cat", "chmod", "dirname", "env", "head", "id", "ln", "mkdir", "sed", "uname")
# Homebrew installs into a folder of its own, and macOS has a `java` that says that there is none.
BREW = """#!/usr/bin/env bash
home=$(dirname "$0")/../cellar/libexec/openjdk.jdk/Contents/Home
case $1 in
  --prefix) echo "$(dirname "$0")/../cellar" ;;
  install)
    mkdir -p "$home/bin"
    printf '#!/usr/bin/env bash\necho \'openjdk version "17.0.15"\' >&2\n' >"$home/bin/java"
    chmod +x "$home/bin/java" ;;
esac
"""
UV = """#!/usr/bin/env bash
[ "$1" = venv ] && mkdir -p "${!#}/bin" && printf '#!/usr/bin/env bash\necho "$JAVA_HOME" >java-home\n' >"${!#}/bin/python" &&
  chmod +x "${!#}/bin/python"
exit 0
"""


class Machine:
    """A checkout and a path with a few commands on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder / "checkout", folder / "bin"
        (self.folder / ".ci").mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(REPOSITORY / ".ci" / "install", self.folder / ".ci" / "install")
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.bin / tool).symlink_to(found)
        self.command("java", "#!/usr/bin/env bash\necho 'Unable to locate a Java Runtime' >&2\nexit 1\n")

    def command(self, name: str, program: str) -> None:
        (self.bin / name).write_text(program)
        (self.bin / name).chmod(0o755)

    def install(self) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/")}
        return subprocess.run(
            [self.folder / ".ci" / "install"], env=environment, capture_output=True, text=True, timeout=60
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_homebrews_java_is_used_though_it_is_on_no_path(machine: Machine) -> None:
    machine.command("brew", BREW)
    machine.command("uv", UV)
    for _ in range(2):  # the second time it is there already
        done = machine.install()
        assert done.returncode == 0, done.stderr
        link = machine.folder / ".venv" / "share" / "catalog-attribute-tagger" / "java"
        assert (link / "bin" / "java").exists()
        # and the class archive is recorded with it
        assert Path((machine.folder / "java-home").read_text().strip()).samefile(link)


def test_a_machine_without_java_is_told(machine: Machine) -> None:
    done = machine.install()
    assert done.returncode == 1
    assert "error: Spark needs Java 17 or newer" in done.stderr


def test_a_machine_without_python_is_told(machine: Machine) -> None:
    machine.command("java", "#!/usr/bin/env bash\necho 'openjdk version \"17.0.15\"' >&2\n")
    done = machine.install()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: no Python 3 was found to install uv with: install Python 3.11"


def test_one_version_of_python_everywhere() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["requires-python"] == ">=3.11,<3.12"
    for file in ("README.md", ".ci/install", ".ci/run", "Makefile"):
        text = (REPOSITORY / file).read_text()
        assert set(re.findall(r"(?:[Pp]ython|--python(?:-version)?) ?(3\.\d+)", text)) == {"3.11"}, file
        assert "3.11 or newer" not in text, file


def test_the_lock_file_names_no_index() -> None:
    """An address of whoever made it (a proxy, a mirror, a password in it) is nobody else's."""
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    assert len(lines) > 100
    shapes = (
        r"\s*#.*",
        r"[a-z0-9._\[\],-]+==\S+( ; .+)? \\",
        r"    --hash=sha256:[0-9a-f]{64}( \\)?",
    )
    wrong = [x for x in lines if "://" in x or not any(re.fullmatch(shape, x) for shape in shapes)]
    assert wrong == []


def test_every_library_is_locked_by_its_hash() -> None:
    """A file that an index gives out under the same name and version, but with other bytes, is not installed."""
    text = (REPOSITORY / "requirements.lock").read_text()
    pinned = re.findall(r"^[a-z0-9._-]+.*==.*\n(?! +--hash=)", text, re.MULTILINE)
    assert text.count("--hash=sha256:") > 1000
    assert pinned == []
    for file in (".ci/install", "Dockerfile"):
        installs = [
            x for x in (REPOSITORY / file).read_text().splitlines() if "requirements.lock" in x and " install " in x
        ]
        assert len(installs) == 1, file
        assert all("--require-hashes" in x for x in installs), file


def test_hooks_run_where_the_environment_is() -> None:
    """Its folder is a setting (VENV), so no hook may have it in its command."""
    assert ".venv" not in (REPOSITORY / ".pre-commit-config.yaml").read_text()
    assert "make hooks" in (REPOSITORY / "README.md").read_text()
    listed = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^make hooks +\S", listed, re.MULTILINE)
