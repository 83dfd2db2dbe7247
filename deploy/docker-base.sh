#!/bin/sh
# Makes base images for networks that reach Debian's packages but no image registry.
#
#   deploy/docker-base.sh                     # as root; needs debootstrap and docker
#   docker build --build-arg BASE=pgshunt-base --build-arg BUILD_BASE=pgshunt-base:build -t pgshunt .
#
# `pgshunt-base` holds Python and nothing to compile with; `pgshunt-base:build` a compiler and Python's headers too.
# Both trust the certificate authorities that this machine trusts: pip may have to get through a proxy with its own.
set -eu

suite=${SUITE:-bookworm}
mirror=${MIRROR:-}
authorities=/etc/ssl/certs/ca-certificates.crt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

base() { # tag, packages
    debootstrap --variant=minbase --include="$2" "$suite" "$work/root" $mirror >"$work/log" 2>&1 || {
        tail -n 20 "$work/log" "$work/root/debootstrap/debootstrap.log" >&2
        exit 1
    }
    [ ! -f "$authorities" ] || cp "$authorities" "$work/root$authorities"
    rm -rf "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/*
    tar -C "$work/root" -c . | docker import --change "ENV PIP_CERT=$authorities" - "$1" >/dev/null
    rm -rf "$work/root"
    echo "$1"
}

base pgshunt-base:latest ca-certificates,python3,python3-venv
base pgshunt-base:build ca-certificates,gcc,libc6-dev,python3,python3-dev,python3-venv
