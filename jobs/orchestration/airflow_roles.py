"""Roles of the people who use Airflow, for its FAB auth manager. ``python -m jobs.orchestration.airflow_roles`` makes them.

FAB's own *Viewer* sees nights, their logs and reports; its *Admin* may do everything. Between them:

* **Operator** starts, clears, stops and backfills nights. No connection, variable or configuration is shown.
* **Reviewer** sees the labelled sets and the suspects, too, and answers the approval of a new model. Starts nothing.

AIRFLOW_ADMIN_PASSWORD, where it is set, becomes the password of the user `admin`, who is made if missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

FAB: Final = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
PASSWORD: Final = "AIRFLOW_ADMIN_PASSWORD"
VIEWER: Final = "Viewer"
# What a role may do beside what a viewer may: actions by resource, in FAB's words.
MORE: Final = {
    "Operator": {
        "DAGs": ("can_edit",),
        "DAG Runs": ("can_create", "can_edit"),
        "Task Instances": ("can_create", "can_edit"),
        "Backfills": ("can_create", "can_edit"),
        "Assets": ("can_create",),
    },
    "Reviewer": {
        "HITL Detail": ("can_edit",),
        "DAG:train_model": ("can_read", "can_edit"),
    },
}  # fmt: skip


def used(variables: Mapping[str, str]) -> bool:
    """Return whether the Airflow of these environment variables has FAB's auth manager."""
    return variables.get("AIRFLOW__CORE__AUTH_MANAGER") == FAB


def make(manager: Any) -> None:
    """Make the roles, or add what they lack.

    Args:
        manager: FAB's security manager.
    """
    manager.sync_roles()  # FAB's own
    viewer = [
        (permission.action.name, permission.resource.name) for permission in manager.find_role(VIEWER).permissions
    ]
    for role, more in MORE.items():
        own = [(action, resource) for resource, actions in more.items() for action in actions]
        manager.bulk_sync_roles([{"role": role, "perms": [*viewer, *own]}])


def set_admin(manager: Any, password: str) -> None:
    """Give the user `admin` this password; make the user if missing.

    Raises:
        RuntimeError: FAB refused; its log says why.
    """
    user = manager.find_user(username="admin")
    if user is not None:
        done = manager.reset_password(user.id, password)
    else:
        role = manager.find_role("Admin")
        done = manager.add_user("admin", "Admin", "", "admin@localhost", role, password)
    if done is False:
        raise RuntimeError("FAB did not take the user admin")


def main() -> None:
    """Make roles and, where a password is given, the user `admin` in the Airflow of the environment."""
    if not used(os.environ):
        print(f"error: roles are kept by FAB's auth manager alone: AIRFLOW__CORE__AUTH_MANAGER={FAB}", file=sys.stderr)
        sys.exit(2)
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        make(builder.sm)
        if password := os.environ.get(PASSWORD):
            set_admin(builder.sm, password)
    print(f"roles: {', '.join([VIEWER, *MORE, 'Admin'])}")


if __name__ == "__main__":
    main()
