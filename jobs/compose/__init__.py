"""Code for docker-compose.yml: prepares the services, creates the S3 users, runs a sample night."""
