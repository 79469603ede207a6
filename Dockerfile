# The image of training jobs; docs/launch.md shows how to build and push it.
#
#   docker build --build-arg ACCELERATOR=tpu --tag composer-jax .
#
# ACCELERATOR is tpu, cuda or cpu.
FROM python:3.11-slim-bookworm

ARG ACCELERATOR=tpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Packages change less often than the code, so they are a layer of their own. Those of
# an accelerator are held to the versions of the lock file too.
WORKDIR /opt/composer_jax
COPY requirements.lock ./
RUN case $ACCELERATOR in \
      tpu) extra='jax[tpu]' ;; \
      cuda) extra='jax[cuda12]' ;; \
      cpu) extra='jax' ;; \
      *) echo "ACCELERATOR is $ACCELERATOR; expected tpu, cuda or cpu." >&2; exit 1 ;; \
    esac && \
    pip install --no-cache-dir --requirement requirements.lock && \
    pip install --no-cache-dir --constraint requirements.lock "$extra"

COPY setup.py pyproject.toml README.md LICENSE ./
COPY assets assets
COPY composer_jax composer_jax
COPY configs configs
COPY data_pipelines data_pipelines
COPY launch launch
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# Logs should be there when a process dies; and what a run leaves behind is elsewhere.
ENV PYTHONUNBUFFERED=1
WORKDIR /work
CMD ["composer-jax", "--help"]
