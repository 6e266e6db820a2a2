#!/bin/sh
# Runs a command of the image: start.sh COMMAND...
# numba writes where it keeps kernels. Where the root is read-only, those of the image are copied to
# /tmp first, once for each name, as containers of a pod may share it.
set -eu
if [ ! -w "$NUMBA_CACHE_DIR" ]; then
    copy=${TMPDIR:-/tmp}/kernels-$(echo "$*" | cut -d' ' -f1-4 | tr -c 'A-Za-z0-9\n' -)
    if [ ! -d "$copy" ]; then
        rm -rf "$copy.new"
        cp -R -p "$NUMBA_CACHE_DIR" "$copy.new"
        chmod u+w "$copy.new"
        mv "$copy.new" "$copy"
    fi
    NUMBA_CACHE_DIR=$copy
    export NUMBA_CACHE_DIR
fi
exec "$@"
