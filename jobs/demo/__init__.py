"""The demo: a drawn catalog, its next day, and two nights through Airflow."""
