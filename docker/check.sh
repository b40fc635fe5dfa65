#!/usr/bin/env bash
# Builds the unchanged Dockerfile without a container engine and without an image registry, then runs the result.
#
#   docker/check.sh [--build-arg DEVICE=cpu ...]     # as root on Debian; about 35 GB of disk, in $TMPDIR
#   needs: apt-get install --no-install-recommends buildah mmdebstrap iproute2
#
# The base is a stand-in: Debian's own Python 3.11, under the real base's name.  So this proves that the steps run, that a
# change of code builds the small layers alone, and that the recipes train on a CPU as the image's user with the network
# off.  It proves nothing about the real base, an engine or a GPU.  Package registry and certificates are those this
# machine is set up with.
set -euo pipefail
cd "$(dirname "$0")/.."
BASE="$(sed -n 's/^ARG BASE=//p' docker/Dockerfile)"
WORK="$(mktemp --directory --tmpdir slicefine-image.XXXXXX)"
export TMPDIR="$WORK" STORAGE_DRIVER="${STORAGE_DRIVER:-overlay}" # vfs works everywhere, but copies every layer
# The name of the image is what it will be called elsewhere; its storage is thrown away in the end.
BUILDAH=(nice -n 10 buildah --root "$WORK/images" --runroot "$WORK/run")

main() {
    trap clean EXIT
    timed "stand-in base" make_base
    settings
    copy_context
    timed "build" build "$@"
    size
    echo "# a line of code is changed, and the image built again"
    echo "# changed" >> "$WORK/context/slicefine_pl/__init__.py"
    timed "build after a change of code" build "$@"
    CONTAINER="$("${BUILDAH[@]}" from --pull-never slicefine)"
    timed "doctor" inside sh -c 'id && slicefine doctor'
    for recipe in text image kinetics causal_lm sparse; do
        timed "smoke run, $recipe" smoke "$recipe" 1 python
    done
    timed "smoke run, two processes" smoke text 2 torchrun --nnodes 1 --node-rank 0 --nproc-per-node 2 \
        --master-addr 127.0.0.1 --master-port 29500
    timed "the image's own command" inside python recipes/text.py fit --trainer.enable_progress_bar false
}

clean() {
    "${BUILDAH[@]}" rm --all > /dev/null || true
    rm -rf --one-file-system "$WORK" # never into what a stopped step may have left mounted there
}

timed() { # a name, then the command
    local what="$1" start=$SECONDS
    shift
    echo "## $what: $*"
    "$@"
    echo "## $what took $((SECONDS - start)) s"
}

make_base() { # pip as the real base has it: for the system's Python, under /usr/local
    local sources=()
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        if [ -s "$file" ]; then sources+=("$file"); fi
    done
    # shellcheck disable=SC2016  # $1 is the new system's folder, which mmdebstrap puts in
    mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,ca-certificates \
        --customize-hook='ln -s /usr/bin/python3.11 "$1/usr/local/bin/python"' \
        --customize-hook='rm "$1/usr/lib/python3.11/EXTERNALLY-MANAGED"' \
        bookworm "$WORK/base.tar" "${sources[@]}"
    printf 'FROM scratch\nADD base.tar /\n' > "$WORK/Dockerfile"
    "${BUILDAH[@]}" build --quiet --isolation chroot --tag "$BASE" --file "$WORK/Dockerfile" "$WORK"
    rm "$WORK/base.tar"
}

settings() { # for the steps of the build only: mounted there, so that they are in no layer
    local index="${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2> /dev/null || true)}}"
    mkdir "$WORK/pip" "$WORK/uv"
    echo '[global]' > "$WORK/pip/pip.conf"
    echo 'system-certs = true' > "$WORK/uv/uv.toml"
    if [ -n "$index" ]; then
        echo "index-url = $index" >> "$WORK/pip/pip.conf"
        echo "index = [{ url = \"$index\", default = true }]" >> "$WORK/uv/uv.toml"
    fi
    MOUNTS=(
        --volume "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}:/etc/ssl/certs/ca-certificates.crt:ro"
        --volume "$WORK/pip/pip.conf:/etc/pip.conf:ro"
        --volume "$WORK/uv:/etc/uv:ro"
    )
}

copy_context() {
    mkdir "$WORK/context"
    git ls-files -z | tar --create --null --files-from=- | tar --extract --directory "$WORK/context"
}

build() {
    "${BUILDAH[@]}" build --isolation chroot --layers --pull-never "${MOUNTS[@]}" "$@" \
        --tag slicefine --file docker/Dockerfile "$WORK/context"
}

size() {
    "${BUILDAH[@]}" images --format '{{.Name}}:{{.Tag}} {{.Size}}' | grep -v '<none>'
}

inside() { # the container, without a network but for the loop to itself
    unshare --net sh -c 'ip link set lo up && exec "$@"' sh \
        "${BUILDAH[@]}" run --isolation chroot --env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}" "$CONTAINER" -- "$@"
}

smoke() { # a recipe, processes, then what starts them
    local recipe="$1" processes="$2"
    shift 2
    inside "$@" "recipes/$recipe.py" fit --config "recipes/configs/${recipe}_smoke.yaml" \
        --trainer.devices "$processes" --trainer.enable_progress_bar false
}

main "$@"
