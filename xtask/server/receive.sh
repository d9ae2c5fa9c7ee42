# Receives an upload; runs as the deploy user, who alone may write to incoming/.
#
# usage: sh -c RECEIVE receive INCOMING
# shellcheck shell=sh
incoming=$1

# The client reads this list up to an empty line, because rsync can resume what is there.
list_interrupted_uploads() {
    printf '%s\n' "$incoming"/* ''
}

# Reads three lines: the file that the patch applies to (empty for a whole file), the file
# to write and its sha256. The rest of the input is what zstd made of the build.
receive() {
    read -r basis && read -r to && read -r sha256 && [ ! -e "$to" ] &&
        zstd --decompress --quiet --stdout ${basis:+"--patch-from=$basis"} >"$to" &&
        [ "$(sha256sum <"$to")" = "$sha256  -" ] && echo received
}

list_interrupted_uploads && receive
