#!/bin/sh
# cargo calls rustc through this (.cargo/config.toml), so that a build without libtorch ends at once with a word on what to do, not
# minutes later inside C++ compiler output. Questions that cargo asks of rustc (-vV, --print) pass through.
case "$*" in
*"--crate-name ___"* | *-vV* | *--print*) ;;
*)
    lib=${LIBTORCH:-$(dirname "$0")/../.libtorch/torch}/lib/libtorch_cpu.so
    if [ ! -e "$lib" ] && [ -z "${LIBTORCH_USE_PYTORCH:-}" ]; then
        echo "libtorch is not here yet ($lib): run \`make libtorch\`, then cargo works as usual." >&2
        exit 1
    fi
    ;;
esac
exec "$@"
