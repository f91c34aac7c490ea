# docker build -t pbtrl .    (docs/guides/docker.md)
FROM python:3.12-slim-bookworm
ARG VERSION=0.0
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# EGL draws MuJoCo's frames for `pbtrl eval --video`.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1-mesa-dri \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN SETUPTOOLS_SCM_PRETEND_VERSION="$VERSION" \
    pip install -c /src/constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu "/src[fast,video]"
WORKDIR /work
RUN pbtrl --version
ENTRYPOINT ["pbtrl"]
CMD ["--help"]
