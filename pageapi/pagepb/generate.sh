#!/usr/bin/env bash
# Makes the Go code of the protobuf files. With --check it only tells whether the committed code is current.
set -euo pipefail
cd "$(dirname "$0")"
command -v protoc >/dev/null || { echo "generate.sh: protoc is missing; on Debian: apt-get install protobuf-compiler" >&2; exit 1; }
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
tool() { (cd ../.. && go tool -n "$1"); }
protoc -I . --plugin=protoc-gen-go="$(tool protoc-gen-go)" --plugin=protoc-gen-go-grpc="$(tool protoc-gen-go-grpc)" \
  --go_out="$out" --go_opt=paths=source_relative --go-grpc_out="$out" --go-grpc_opt=paths=source_relative everpage/v1/*.proto
# the compiler's own version is a comment in the output and says nothing about currency
sed -i '/^\/\/ .*protoc  *v/d; /^\/\/ - protoc  *v/d' "$out"/everpage/v1/*.go
if [ "${1:-}" = --check ]; then
  for f in "$out"/everpage/v1/*.go; do
    cmp -s "$f" "everpage/v1/$(basename "$f")" || { echo "generate.sh: $(basename "$f") is not current; run pageapi/pagepb/generate.sh" >&2; exit 1; }
  done
else
  cp "$out"/everpage/v1/*.go everpage/v1/
fi
