# Both sides of a migration and the practice guest. Nothing is compiled here: bin/image makes the wheels for
# the base's Python outside, so that the image holds no compiler, and so that no network is needed to build it.
ARG BASE=python:3.11-slim
FROM ${BASE}

COPY build/wheels /tmp/wheels
RUN python3 -m venv /opt/migrate \
    && /opt/migrate/bin/pip install --no-cache-dir --no-index --find-links /tmp/wheels migrate \
    && /opt/migrate/bin/python -c 'import migrate.kernel' \
    && useradd --uid 1000 --create-home --home-dir /var/lib/migrate migrate

ENV PATH=/opt/migrate/bin:$PATH PYTHONUNBUFFERED=1
USER migrate
WORKDIR /var/lib/migrate
