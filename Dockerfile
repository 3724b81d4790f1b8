# docker build -t foveate .
# docker run --rm -v "$PWD:/work" foveate sites mobilenetv2_100
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY foveate foveate
RUN pip install --no-cache-dir "build>=1.2" && python -m build --wheel --outdir /wheels

FROM python:3.11-slim
# The fused kernels for the processor are compiled at their first use.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY constraints.txt /tmp/constraints.txt
# Which packages torch comes from: https://download.pytorch.org/whl/cpu is smaller and has no CUDA.
ARG EXTRA_INDEX_URL=""
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    wheel=$(echo /wheels/foveate-*.whl) \
    && pip install --no-cache-dir --constraint /tmp/constraints.txt \
        ${EXTRA_INDEX_URL:+--extra-index-url "$EXTRA_INDEX_URL"} "$wheel[demo,export,heic,web]" \
    && foveate --version
RUN useradd --create-home foveate
USER foveate
WORKDIR /work
ENTRYPOINT ["foveate"]
CMD ["--help"]
