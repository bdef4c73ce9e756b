# nightmill in one image: API, workers, migrations. `docker build -t nightmill .`
#
# The image contains the packages of requirements.lock, each file checked against its hash there. The container needs
# no root user, no shell and no writable root: only /data, for a data folder, and /tmp.
#
# EXTRAS: further extras of pyproject.toml. For workers on Ray:
#   docker build --build-arg EXTRAS=postgres,objects,ray -t nightmill:ray .
ARG PYTHON=3.13-slim-trixie

FROM python:${PYTHON} AS build
ARG EXTRAS=postgres,objects
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
COPY requirements.lock ./
# uv is in the lock like all packages; awk selects its lines.
RUN awk '/^uv==/ { found = 1 } found { print } found && !/\\$/ { exit }' requirements.lock > uv.lock \
    && pip install --no-cache-dir --require-hashes -r uv.lock \
    && uv venv --python /usr/local/bin/python /opt/nightmill
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN uv build --wheel --require-hashes --build-constraints requirements.lock --out-dir dist . \
    && wheel="$(echo /src/dist/*.whl)" \
    && hash="$(sha256sum "$wheel" | cut -c -64)" \
    && echo "nightmill[${EXTRAS}] @ file://$wheel --hash=sha256:$hash" > nightmill.txt \
    && uv pip install --python /opt/nightmill/bin/python --no-cache --compile-bytecode \
        --require-hashes --constraints requirements.lock --requirements nightmill.txt

FROM python:${PYTHON}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nightmill" \
      org.opencontainers.image.description="OpenAI Batch API server for your own models" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/nightmill /opt/nightmill
# The data folder of one machine; with Postgres and a bucket it stays empty.
RUN install -d -m 0700 -o 10001 -g 10001 /data
WORKDIR /data
# Loopback is not reachable from outside a container. Without an API key the server refuses to listen on other addresses.
ENV PATH=/opt/nightmill/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NIGHTMILL_FOLDER=/data \
    NIGHTMILL_API__HOST=0.0.0.0 \
    NIGHTMILL_API__PORT=8080
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# For `serve`; `work` has no port.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['NIGHTMILL_API__PORT']}/health\", timeout=2)"]
ENTRYPOINT ["nightmill"]
CMD ["serve"]
