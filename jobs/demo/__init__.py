"""The demo: a generated catalog, its next day, and two nights through Airflow."""
