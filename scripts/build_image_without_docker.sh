#!/usr/bin/env bash
# Build an image where no Docker engine runs: Debian's buildah in a chroot, on a base image made by debootstrap.
#
#   scripts/build_image_without_docker.sh [DOCKERFILE [TAG [BUILDAH OPTION...]]]
#   scripts/build_image_without_docker.sh Dockerfile.cpu llm-local:cpu --build-arg CPU_ARCH=native
#
# Needs root, and on Debian or Ubuntu: apt install buildah debootstrap. What a build needs of this machine to reach its
# package registries is mounted for the build and does not come into the image:
#   ... -v /etc/ssl/certs:/etc/ssl/certs:ro -v /etc/pip.conf:/etc/pip.conf:ro
# SUITE is the Debian release of the base (its Python must be 3.11 or 3.12), BASE_IMAGE the image's name; one that is
# there already is used as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

dockerfile=${1:-Dockerfile.cpu}
tag=${2:-llm-local:cpu}
shift $(($# < 2 ? $# : 2))
suite=${SUITE:-bookworm}
base=${BASE_IMAGE:-localhost/debian-python:$suite}
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}

fail() {
    echo "build_image_without_docker: error: $*" >&2
    exit 2
}

make_base() {
    root=$(mktemp --directory)
    trap 'rm -rf "$root"' EXIT
    debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv "$suite" "$root"
    # The lists are fetched again when they are needed.
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$root" /
    buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    buildah commit --quiet --format docker "$container" "$base"
    buildah rm "$container" >/dev/null
}

[ -f "$dockerfile" ] || fail "there is no $dockerfile"
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || fail "$tool is missing; run: apt install buildah debootstrap"
done
buildah inspect --type image "$base" >/dev/null 2>&1 || make_base

# The format is Docker's because OCI's has no HEALTHCHECK; with layers, what did not change is not built again.
buildah bud --format docker --layers --build-arg BASE_IMAGE="$base" "$@" --tag "$tag" --file "$dockerfile" .
buildah images "$tag"
