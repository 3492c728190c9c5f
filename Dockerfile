# One image for all services: Airflow's parts and workers, Spark's master and workers. If requirements.lock did not change, only
# the last layers are built again.
# To pin the base image by its digest: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:... (docs/deploy.md).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE} AS libraries
RUN pip install --no-cache-dir uv==0.13.9
COPY requirements.lock /build/
# Trust the system's certificates, as pip does: a company's proxy may have its own.
ENV UV_SYSTEM_CERTS=true
# Compile now: containers cannot write bytecode, so each process would compile everything again.
RUN uv venv --python "$(command -v python3)" /opt/venv && \
    uv pip install --python /opt/venv/bin/python --no-cache --compile-bytecode --require-hashes -r /build/requirements.lock

FROM ${PYTHON_IMAGE}
RUN apt-get update && \
    apt-get install -y --no-install-recommends openjdk-17-jre-headless procps tini && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --uid 1000 --create-home tagger && \
    mkdir -p /app /work /airflow/shared /data && chown -R tagger /app /work /airflow /data
COPY --from=libraries --chown=tagger /opt/venv /opt/venv
RUN mkdir -p /iam /run/spark && chown tagger /iam /run/spark && chmod 700 /iam /run/spark
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/app \
    TMPDIR=/work \
    AIRFLOW_HOME=/airflow \
    SPARK_NO_DAEMONIZE=1
USER tagger
WORKDIR /app
COPY --chown=tagger schemas/ schemas/
COPY --chown=tagger cma_clip_core/ cma_clip_core/
COPY --chown=tagger jobs/ jobs/
# Fetch Spark's S3 libraries and record its class archive now, so that no container does it at its start.
RUN python -m jobs.spark.s3a && python -m jobs.demo.record_class_archive
COPY --chown=tagger dags/ dags/
# Compile our own modules too, because containers cannot write.
RUN python -m compileall -q /app
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "jobs", "--help"]
