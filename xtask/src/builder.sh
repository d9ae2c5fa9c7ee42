# Builds inside the container, as root. What it creates gets the owner of the workspace,
# whatever number that owner has in here.
#
# shellcheck shell=sh
set -eu
package=$1 profile=$2 triple=$3
trap 'chown -R --reference=/src /cache' EXIT
cargo build --locked --package "$package" --profile "$profile" --target "$triple" \
    --target-dir /cache/target
