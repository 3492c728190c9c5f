"""Airflow from our side: a local one, its API, its roles, its forms, and alerts. No module imports Airflow."""
