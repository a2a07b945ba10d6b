# piperd. docs/docker.md says how to run it; docker-compose.yml does.
# Both stages need the same image, as a venv names the Python that it was made by. Any with Python >= 3.11 will do.
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
COPY . .
# pip has no business where nothing may be installed.
RUN python3 -m venv /opt/piper \
 && /opt/piper/bin/pip install --no-cache-dir . \
 && /opt/piper/bin/pip uninstall --yes pip

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="piper" \
      org.opencontainers.image.description="Telemetry lakehouse daemon: JSONL spool in, exactly once, DuckDB and Grafana out" \
      org.opencontainers.image.licenses="MIT"
# A fixed uid, so that it can be given the data root on the host. The directories are where docker-compose.yml mounts
# volumes: a new volume takes owner and mode from here.
RUN groupadd --gid 10001 piper \
 && useradd --uid 10001 --gid piper --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin piper \
 && install --directory --owner=piper --group=piper --mode=0750 /var/lib/piper /srv/piper /srv/piper/spool \
    /srv/piper/data /srv/piper/data/warehouse /srv/piper/data/silver
COPY --from=build /opt/piper /opt/piper
ENV PATH=/opt/piper/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /srv/piper
EXPOSE 9464
# piperd drains and commits for up to 27 seconds: give `docker stop` 30.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["piper", "healthcheck"]
ENTRYPOINT ["piperd"]
