# Runs ssh with these arguments, and ends it when the input of this script closes, which
# happens when the client ends. Without this, a killed client would leave its connection.
#
# shellcheck shell=sh
exec 3<&0
{
    trap '' INT
    cat <&3
    kill $$
} >/dev/null 2>&1 &
exec ssh "$@" </dev/null 3<&-
