# The gateway as a container: dependencies in the environment, our five folders beside it, nothing else, not root.
FROM python:3.13-slim AS build
WORKDIR /build
COPY requirements.lock .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir --require-hashes --requirement requirements.lock

FROM python:3.13-slim
RUN useradd --uid 10001 --create-home --home-dir /srv/weighbridge weighbridge
COPY --from=build /venv /venv
COPY gateway /app/gateway
COPY policies /app/policies
COPY routing /app/routing
COPY adapters /app/adapters
COPY config /app/config
# PYTHONPATH comes before site-packages, so no dependency can stand in for one of our folders.
ENV PATH=/venv/bin:$PATH PYTHONPATH=/app PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001
WORKDIR /srv/weighbridge
EXPOSE 8080 8081
HEALTHCHECK CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
ENTRYPOINT ["python", "-m", "gateway.cli"]
CMD ["serve", "--config", "/etc/weighbridge/weighbridge.yaml"]
