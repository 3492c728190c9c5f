"""What docker-compose.yml runs: services prepared, S3 users made, a sample night."""
