# weightpack in a small image:  docker build -t weightpack . && docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" weightpack pack model.safetensors
# The wheel is built in the first stage; the second has no compiler. torch is not in it: the command line needs none.
FROM python:3.13-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN WEIGHTPACK_REQUIRE_NATIVE=1 pip wheel --no-cache-dir -c constraints.txt --wheel-dir /wheels .

FROM python:3.13-slim-bookworm
LABEL org.opencontainers.image.title="weightpack" \
      org.opencontainers.image.source="https://github.com/weightpack/weightpack" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels pip install --no-cache-dir --no-index --find-links /wheels weightpack \
    && useradd --create-home --uid 1000 weightpack
COPY --chmod=444 scripts/smoke.py /usr/share/weightpack/smoke.py
USER weightpack
ENV PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1
WORKDIR /data
ENTRYPOINT ["weightpack"]
CMD ["--help"]
