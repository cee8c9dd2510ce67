#!/usr/bin/env bash
# fetch.sh CACHE_DIR   print the path of the S3 server that tests run against, building it when absent (about a minute)
# Only the answer is printed on stdout. It is built outside the module, whose go.mod would grow by all that the server needs.
set -euo pipefail
umask 022
version=v1.8.0
home=$1/versitygw/$version
if [ ! -x "$home/versitygw" ]; then
	mkdir -p "$home"
	exec 9>"$1/versitygw/.lock"
	flock -w 900 9 || { echo "another run has held $1/versitygw/.lock for 15 minutes" >&2; exit 1; }
	if [ ! -x "$home/versitygw" ]; then
		work=$(mktemp -d "$1/versitygw/.new.XXXXXX")
		trap 'rm -rf "$work"' EXIT
		(cd "$work" && GOFLAGS= GOBIN=$work nice go install "github.com/versity/versitygw/cmd/versitygw@$version") >&2
		mv "$work/versitygw" "$home/versitygw"
	fi
fi
echo "$home/versitygw"
