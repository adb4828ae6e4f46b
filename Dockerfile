# The harness in a container, by the same script and the same pins as `make`.
#
# One machine, processors only:
#   docker build -t harness .
#   docker run --rm -it --shm-size 2g harness make demo
#
# NVIDIA cards:
#   docker build -t harness-gpu --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 \
#       --build-arg EXTRAS=tests,analysis,gpu .
#   docker run --rm -it --gpus all --network host --shm-size 8g harness-gpu harness doctor
#
# Several machines: on each one a container that only listens, with one key pair in every container
# (without cards the image is harness, and --gpus is left out),
#   docker run -d --name harness --gpus all --network host --shm-size 8g -v KEYS:/root/.ssh:ro \
#       harness-gpu /usr/sbin/sshd -D -p 12345
# and in the first one
#   docker exec -it harness horovodrun -p 12345 -np 8 -H one:4,two:4 --network-interfaces eth0 \
#       python -m harness train EXPERIMENT.yaml
# KEYS is a folder with id_ed25519, authorized_keys and known_hosts. On every machine it belongs to root
# and has mode 700, and its files 600: sshd refuses keys that others could have written. No key is made
# or kept in the image.
#
# Where packages come from is pip's own business: --build-arg PIP_INDEX_URL=... PIP_EXTRA_INDEX_URL=...

ARG BASE=debian:12
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ git make openssh-client openssh-server \
        python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    # Made anew at the first start: host keys in an image would be everybody's.
    && rm -f /etc/ssh/ssh_host_* \
    && mkdir -p /run/sshd

ARG EXTRAS=tests,analysis
ARG JOBS=2
# NCCL builds Horovod's operations on cards (BASE needs the CUDA compiler and NCCL's headers). It
# changes nothing for the harness, which gives Horovod tensors in host memory only.
ARG HOROVOD_GPU_OPERATIONS
ARG HOROVOD_CUDA_HOME
ARG HOROVOD_WITH_MPI
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_NO_CACHE_DIR=1

# The set-up alone, so that a change of the harness does not compile Horovod again.
WORKDIR /harness
COPY Makefile pyproject.toml ./
COPY install install
COPY harness/__init__.py harness/
COPY analysis/__init__.py analysis/
RUN make setup EXTRAS=${EXTRAS} JOBS=${JOBS}
COPY . .
# The copied files are newer than the set-up, which make would repeat.
RUN touch .venv/.stamp

ENV PATH=/harness/.venv/bin:${PATH}
RUN printf '#!/bin/sh\nssh-keygen -A >/dev/null 2>&1 || true\nexec "$@"\n' > /usr/local/bin/start \
    && chmod +x /usr/local/bin/start
ENTRYPOINT ["/usr/local/bin/start"]
CMD ["bash"]
