"""Roles for Airflow's users with its FAB auth manager. ``python -m jobs.orchestration.airflow_roles`` creates them.

FAB has two roles of its own: a *Viewer* sees nights, their logs and reports, and an *Admin* may do everything. This module
adds two between them:

* **Operator** can also start, clear, stop and backfill nights, but sees no connection, variable or configuration.
* **Reviewer** can also see labelled sets and suspects and approve a new model, but cannot start anything.

If AIRFLOW_ADMIN_PASSWORD is set, it becomes the password of the user `admin`, who is created if missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

FAB: Final = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
PASSWORD: Final = "AIRFLOW_ADMIN_PASSWORD"
VIEWER: Final = "Viewer"
# Permissions of a role beyond those of a viewer: resource -> actions, in FAB's terms.
EXTRA_PERMISSIONS: Final = {
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


def uses_fab(variables: Mapping[str, str]) -> bool:
    """Return whether the Airflow with these environment variables uses FAB's auth manager."""
    return variables.get("AIRFLOW__CORE__AUTH_MANAGER") == FAB


def make_roles(manager: Any) -> None:
    """Create the roles, or add missing permissions to existing ones.

    Args:
        manager: FAB's security manager.
    """
    manager.sync_roles()  # roles of FAB itself
    viewer = [
        (permission.action.name, permission.resource.name) for permission in manager.find_role(VIEWER).permissions
    ]
    for role, permissions in EXTRA_PERMISSIONS.items():
        extra = [(action, resource) for resource, actions in permissions.items() for action in actions]
        manager.bulk_sync_roles([{"role": role, "perms": [*viewer, *extra]}])


def set_admin(manager: Any, password: str) -> None:
    """Set the password of the user `admin`; create the user if missing.

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
        raise RuntimeError("FAB did not accept the user admin or its password; its log says why")


def main() -> None:
    """Create the roles in the Airflow of the environment; if a password is given, also set up the user `admin`."""
    if not uses_fab(os.environ):
        print(
            f"error: only FAB's auth manager has roles; set AIRFLOW__CORE__AUTH_MANAGER={FAB}",
            file=sys.stderr,
        )
        sys.exit(2)
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder

    with get_application_builder() as builder:
        make_roles(builder.sm)
        if password := os.environ.get(PASSWORD):
            set_admin(builder.sm, password)
    print(f"roles: {', '.join([VIEWER, *EXTRA_PERMISSIONS, 'Admin'])}")


if __name__ == "__main__":
    main()
