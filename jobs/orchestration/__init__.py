"""Our side of Airflow: a local Airflow, an API client, user roles, form options and alerts.

Only `airflow_roles` imports Airflow, and only when it runs.
"""
