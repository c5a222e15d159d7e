# One file, two images. For a GPU (torch's own CUDA wheels bring their libraries; the host brings the driver):
#     docker build --tag frcnn-service .
# Without one, much smaller, since CUDA's libraries are left out:
#     docker build --tag frcnn-service:cpu --build-arg DEVICE=cpu .
# Smaller still with the package index on which PyTorch publishes its CPU builds (see "Get started" on its site). On it
# the locked version exists with the suffix +cpu, which pip prefers: --build-arg DEVICE=cpu --build-arg TORCH_INDEX=<it>
# With Ray for many GPUs (docs/scaling.md): --build-arg EXTRAS=[ray]
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

# ---- packages: everything that changes only with the lock
FROM ${PYTHON_IMAGE} AS packages
ARG TORCH_INDEX=""
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE NOTICE ./
# The install is editable: the venv only points to /app, so the code needs no second install and no second copy.
RUN --mount=type=cache,target=/root/.cache/pip \
    mkdir model service weights \
    && python -m venv /opt/venv \
    && /opt/venv/bin/pip install --constraint requirements.lock ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --editable ".$EXTRAS"

ARG DEVICE=gpu
COPY docker/without_cuda.py /opt/
# hadolint ignore=DL3008
RUN if [ "$DEVICE" = cpu ] && [ -z "$TORCH_INDEX" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/* \
        && /opt/venv/bin/python /opt/without_cuda.py \
        && /opt/venv/bin/python -c "import torchvision, torch; assert not torch.cuda.is_available()"; \
    fi

# ---- the service
FROM ${PYTHON_IMAGE} AS service
ARG DEVICE=gpu
# On a GPU, Triton compiles C while the service warms up: the part of a kernel that Python calls (Python.h is in the base).
# The compiler's version is the base's, with Debian's security fixes, hence not pinned. Without a GPU none is needed.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    if [ "$DEVICE" != cpu ]; then \
        rm -f /etc/apt/apt.conf.d/docker-clean \
        && apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev; \
    fi \
    && groupadd --gid 10001 frcnn \
    && useradd --uid 10001 --gid frcnn --no-create-home --home-dir /tmp --shell /usr/sbin/nologin frcnn \
    && install --directory --owner=frcnn --group=frcnn /var/cache/frcnn

COPY --from=packages /opt/venv /opt/venv
COPY --from=packages /app /app
COPY docker/healthcheck.py /app/docker/healthcheck.py
COPY weights /app/weights
COPY model /app/model
COPY service /app/service

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FRCNN_HOST=0.0.0.0 \
    FRCNN_PORT=8000 \
    FRCNN_CACHE_DIR=/var/cache/frcnn \
    TRITON_CACHE_DIR=/var/cache/frcnn/triton \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A login shell, which KubeRay starts Ray with, sets PATH anew.
RUN echo "PATH=/opt/venv/bin:\$PATH" > /etc/profile.d/frcnn.sh

WORKDIR /app
USER 10001:10001
# The only places written to: with a read-only root, mount this volume and a tmpfs on /tmp.
VOLUME /var/cache/frcnn
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 CMD ["python", "/app/docker/healthcheck.py"]
ENTRYPOINT ["frcnn"]
CMD ["serve"]

# Last, as they change with every build: docker build --build-arg VERSION=1.2.3 --build-arg REVISION=$(git rev-parse HEAD)
# --build-arg CREATED=$(date --utc +%FT%TZ)
ARG VERSION=""
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="frcnn-service" \
      org.opencontainers.image.description="Faster R-CNN as an inference microservice" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.created="$CREATED"
