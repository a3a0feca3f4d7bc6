#!/bin/sh
# cargo calls rustc through this (.cargo/config.toml), so that a build without libtorch ends at once with a word on what to do, not
# minutes later inside C++ compiler output, and so that the program, once linked, no longer loads libtorch at every start. Questions that
# cargo asks of rustc (-vV, --print) pass through.
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

# The program itself, not its unit tests, and where it is linked, not only checked.
case " $* " in
*" --test "*) exec "$@" ;;
*" --crate-name odh "*" --crate-type bin "*) ;;
*) exec "$@" ;;
esac
"$@" || exit
folder='' suffix='' linked='' before=''
for word; do
    case $before$word in
    --out-dir*) folder=$word ;;
    *extra-filename=*) suffix=${word##*extra-filename=} ;;
    --emit=*link*) linked=yes ;;
    esac
    before=''
    [ "$word" != --out-dir ] || before=$word
done
[ -n "$linked" ] || exit 0
# Where this fails the program is whole, and slower to start. Not in /tmp, where programs may be forbidden to run.
patcher=$(mktemp -d "$folder/lazy_libtorch.XXXXXX") || exit 0
"$1" --edition 2024 -o "$patcher/lazy_libtorch" "$(dirname "$0")/lazy_libtorch.rs" && "$patcher/lazy_libtorch" "$folder/odh$suffix"
rm -rf "$patcher"
exit 0
