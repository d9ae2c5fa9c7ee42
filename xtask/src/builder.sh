# Builds inside the container, as root. What it creates gets the owner of the workspace,
# whatever number that owner has in here.
#
# shellcheck shell=sh
set -eu
package=$1 triple=$2
trap 'chown -R --reference=/src /cache' EXIT
cargo build --release --locked --package "$package" --target "$triple" --target-dir /cache/target
