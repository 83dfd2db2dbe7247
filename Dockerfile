# Two stages: the first compiles, the second has no compiler. Any Debian-like Python image will do as BASE;
# BUILD_BASE needs a C compiler and Python's headers of the same version.
#
#   docker build -t pgshunt .
#   docker run -p 6432:6432 -v ./pgshunt.yaml:/etc/pgshunt/pgshunt.yaml:ro -v pgshunt-state:/var/lib/pgshunt pgshunt
#
# In pgshunt.yaml, which user 6432 must be able to read: `listen: {host: 0.0.0.0}`, for -p reaches only what is not on
# the container's loopback, and `state: {path: /var/lib/pgshunt/state.json}`.
#
# Without an image registry: deploy/docker-base.sh.
ARG BASE=python:3.12-slim
ARG BUILD_BASE=python:3.12

FROM ${BUILD_BASE} AS build
RUN python3 -m venv /opt/pgshunt && /opt/pgshunt/bin/pip install --no-cache-dir --upgrade pip
WORKDIR /src
# What changes seldom comes first: the dependencies stay cached while the code changes.
COPY pyproject.toml ./
RUN /opt/pgshunt/bin/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && /opt/pgshunt/bin/pip install --no-cache-dir -r requirements.txt
COPY . .
RUN /opt/pgshunt/bin/pip install --no-cache-dir --no-deps . && /opt/pgshunt/bin/pip uninstall -y pip \
    && find /opt/pgshunt -name __pycache__ -prune -exec rm -rf {} +

FROM ${BASE}
# The same path as in the first stage: a virtual environment does not move.
COPY --from=build /opt/pgshunt /opt/pgshunt
RUN groupadd --system --gid 6432 pgshunt \
    && useradd --system --uid 6432 --gid 6432 --home-dir /var/lib/pgshunt --shell /usr/sbin/nologin pgshunt \
    && install -d -o pgshunt -g pgshunt -m 700 /var/lib/pgshunt \
    && /opt/pgshunt/bin/python -m compileall -q /opt/pgshunt
ENV PATH=/opt/pgshunt/bin:$PATH PYTHONUNBUFFERED=1
USER pgshunt
WORKDIR /var/lib/pgshunt
VOLUME /var/lib/pgshunt
EXPOSE 6432 6433
# /livez answers while the supervisor's event loop turns; a database that is down does not make it fail.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python3", "-c", "import os, urllib.request as u; u.urlopen(os.environ.get('PGSHUNT_LIVEZ', 'http://127.0.0.1:6433/livez'), timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgshunt"]
CMD ["serve", "-c", "/etc/pgshunt/pgshunt.yaml"]
