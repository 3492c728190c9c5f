"""Spark sessions, and Spark's access to S3."""
