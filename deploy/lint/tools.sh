#!/usr/bin/env bash
# Installs the tools that `make lint` needs and Go modules don't bring, where they are missing.
set -euo pipefail
command -v protoc >/dev/null && exit 0
if [ "$(id -u)" != 0 ]; then
  echo "tools.sh: protoc is missing; run: sudo apt-get install protobuf-compiler" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
apt-get install -y -qq --no-install-recommends protobuf-compiler >&2
