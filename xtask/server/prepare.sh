#!/bin/sh
# Prepares a server; `cargo xtask setup` runs it as root. The files that it installs are
# its input. It checks everything before it changes anything, leaves what is right already,
# and stops nothing that serves. The client joins caddy.sh to it.
#
# usage: sh -c PREPARE prepare SERVICE DIRECTORY DEPLOYER DOMAIN
#
# shellcheck disable=SC2034 # domain is read in caddy.sh
set -eu
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
service=$1 dir=$2 deployer=$3 domain=$4
admin=${SUDO_USER:-root}
if [ -d /run/systemd/system ]; then manager=systemd; else manager='nohup'; fi
changed=

prepare() {
    receive_files
    check_system
    check_directory
    [ "$manager" = nohup ] || check_units
    check_users
    check_site
    install_packages
    make_users
    # Before the service's own files, because Caddy may refuse it.
    install_site
    make_directory "$dir" root 755
    # The settings first, because they mark the directory as made by `setup`.
    install_file "$dir/settings" 644
    make_directories
    install_file "$dir/bin/activate" 755
    [ "$deployer" = root ] || install_sudoers
    if [ "$manager" = systemd ]; then install_units; else explain_boot; fi
}

# Without systemd the app runs under the nohup manager, which has to be told the user.
settings() {
    if [ "$manager" = systemd ]; then
        content "$dir/settings"
    else
        content "$dir/settings" | sed "s/manager=systemd/manager=nohup user=$service/"
    fi
}

explain_boot() {
    [ -n "$changed" ] || return 0
    say "Boot there is no systemd; so that a boot starts the app, add this line"
    if [ -d /etc/cron.d ]; then
        say "| to /etc/cron.d/$service: @reboot root $dir/bin/activate boot"
    else
        say "| to /etc/rc.local, which has to be executable: $dir/bin/activate boot"
    fi
}

# The client writes `=== PATH` before each file and `=== end` after the last.
receive_files() {
    files=$(mktemp)
    trap 'rm -f "$files"' EXIT
    cat >"$files"
    [ "$(tail -n 1 "$files")" = "=== end" ] || refuse "the files did not arrive completely"
}

content() { # PATH
    awk -v path="$1" '/^=== / { inside = $2 == path; next } inside' "$files"
}

check_system() {
    [ "$(id -u)" = 0 ] || refuse "\`setup\` needs root; \`--as USER\` connects as a user with sudo"
    command -v useradd >/dev/null || refuse "it has no useradd; only Debian and Ubuntu are supported"
}

check_directory() {
    case $dir/ in
        *//* | */./* | */../*) refuse "$dir is not a plain path" ;;
    esac
    [ "$deployer" != "$service" ] || refuse "$deployer is the app's own user; deploy as another one"
    check_folders
    if [ -e "$dir/settings" ]; then
        other=$(sed -n 's/^service=\([^ ]*\).*/\1/p' "$dir/settings")
        [ "$other" = "$service" ] || refuse "$dir is the directory of the service $other, not of $service"
    fi
    if [ -d "$dir" ] && [ ! -e "$dir/settings" ] && [ -n "$(ls -A "$dir")" ]; then
        refuse "$dir exists but was not created by \`setup\`"
    fi
}

# Whoever can change one of the folders that lead to bin/activate can replace it, and sudo
# runs that.
check_folders() {
    folder=$dir
    while true; do
        check_folder "$folder"
        [ "$folder" != / ] || return 0
        folder=${folder%/*}
        folder=${folder:-/}
    done
}

check_folder() { # FOLDER
    [ ! -h "$1" ] || refuse "$1, which leads to $dir/bin, is a link"
    [ -e "$1" ] || return 0
    case $(stat -c '%u %A' "$1") in
        0\ ?????-??-?) ;;
        *) refuse "$1, which leads to $dir/bin, can be changed by others than root" ;;
    esac
}

# A unit of another service by this name would be hidden by ours.
check_units() {
    for unit in "$service.socket" "$service.service" "$service@.service"; do
        if [ -e "/etc/systemd/system/$unit" ]; then
            grep -qF "$dir/" "/etc/systemd/system/$unit" || refuse "its $unit was not created by \`setup\` for $dir"
        elif [ -n "$(systemctl list-unit-files --no-legend "$unit" 2>/dev/null)" ]; then
            refuse "its $unit is another service's; choose another name than $service"
        fi
    done
    # systemd would close the old port as soon as it reads the new one.
    socket=/etc/systemd/system/$service.socket
    if systemctl is-active --quiet "$service.socket" && [ "$(port <"$socket")" != "$(content "$socket" | port)" ]; then
        refuse "it serves on another port; to move it, \`stop\` it, \`setup\`, and \`start\`"
    fi
}

port() {
    grep ^ListenStream=
}

# Debian itself owns the users below 100.
check_users() {
    uid=$(id -u "$service" 2>/dev/null || echo 100)
    [ "$uid" -lt 1000 ] || refuse "its user $service is a person's"
    [ "$uid" -ge 100 ] || refuse "its user $service is the system's; choose another name than $service"
    if [ -e "/etc/sudoers.d/$service" ] && ! grep -qF " $dir/bin/activate " "/etc/sudoers.d/$service"; then
        refuse "its /etc/sudoers.d/$service was not created by \`setup\` for $dir"
    fi
    if ! id "$deployer" >/dev/null 2>&1; then
        [ -s "$(home_of "$admin")/.ssh/authorized_keys" ] ||
            refuse "$admin has no ~/.ssh/authorized_keys to copy to $deployer; create that user yourself"
    fi
}

install_packages() {
    command -v rsync >/dev/null || install_package rsync || refuse "it lacks rsync"
    [ "$deployer" = root ] || command -v visudo >/dev/null || install_package sudo || refuse "it lacks sudo"
    # Debian always has it; activate.sh asks instances with it.
    [ "$manager" = nohup ] || command -v perl >/dev/null || install_package perl-base || refuse "it lacks perl"
    # zstd makes uploads smaller; they work without it.
    command -v zstd >/dev/null || install_package zstd || say "Continuing without zstd"
}

install_package() { # PACKAGE
    say "Installing $1"
    said=$(apt_get install "$1" 2>&1) || said=$(apt_get update 2>&1 && apt_get install "$1" 2>&1) ||
        { printf '%s\n' "$said" | tail -n 5 >&2 && return 1; }
}

apt_get() {
    DEBIAN_FRONTEND=noninteractive apt-get --option DPkg::Lock::Timeout=60 --yes --quiet "$@"
}

# The app's user owns nothing but its state.
make_users() {
    if ! id "$service" >/dev/null 2>&1; then
        say "Adding the system user $service, which runs the app"
        useradd --system --user-group --home-dir /nonexistent --shell /usr/sbin/nologin "$service"
    fi
    id "$deployer" >/dev/null 2>&1 || make_deployer
}

# The deploy user logs in with the keys of the admin. Its home is root's, so that it cannot
# add keys, and a key that is taken away is gone.
make_deployer() {
    say "Adding the deploy user $deployer with the ssh keys of $admin"
    useradd --create-home --skel /var/empty --shell /bin/sh "$deployer"
    home=$(home_of "$deployer")
    group=$(id -gn "$deployer")
    install -d -m 750 -o root -g "$group" "$home" "$home/.ssh"
    restrict_keys <"$(home_of "$admin")/.ssh/authorized_keys" >"$home/.ssh/authorized_keys"
    chown "root:$group" "$home/.ssh/authorized_keys"
    chmod 640 "$home/.ssh/authorized_keys"
}

# No forwarding and no terminal, unless the key's own options allow them.
restrict_keys() {
    sed -e 's/^[[:space:]]*//' -e '/^#/d' -e '/^$/d' \
        -e '/^\(ssh-\|ecdsa-\|sk-\)/{s/^/restrict /;b' -e '}' -e 's/^/restrict,/'
}

home_of() { # USER
    getent passwd "$1" | cut -d : -f 6
}

make_directories() {
    for folder in "$dir/bin" "$dir/versions" "$dir/run"; do
        make_directory "$folder" root 755
    done
    make_directory "$dir/log" root 700
    make_directory "$dir/incoming" "$deployer" 700
    [ "$manager" = systemd ] || make_directory "$dir/state" "$service" 700
    # The app's environment is secret, and who can read the lock file can hold the lock.
    for file in "$dir/env" "$dir/lock"; do
        if [ ! -e "$file" ]; then
            say "Adding $file"
            install -m 600 /dev/null "$file"
        fi
    done
}

make_directory() { # DIRECTORY OWNER MODE
    [ "$(stat -c '%U %a' "$1" 2>/dev/null)" = "$2 $3" ] && return
    say "Adding $1"
    install -d -m "$3" -o "$2" -g "$(id -gn "$2")" "$1"
}

install_file() { # FILE MODE
    case $1 in */settings) settings ;; *) content "$1" ;; esac >"$1.new" || { rm -f "$1.new"; refuse "cannot write $1"; }
    if [ "$(stat -c %a "$1" 2>/dev/null)" = "$2" ] && cmp -s "$1.new" "$1"; then
        rm -f "$1.new"
        return
    fi
    say "Writing $1"
    [ ! -e "$1" ] || diff -U 0 "$1" "$1.new" | tail -n +3 | sed 's/^/| /' || :
    chmod "$2" "$1.new"
    mv -T "$1.new" "$1"
    changed=$1
}

# A mistake in a sudoers file breaks sudo for everybody, so it is checked first.
install_sudoers() {
    content /etc/sudoers.d/"$service" >"$dir/.sudoers"
    visudo --check --quiet --file="$dir/.sudoers" || refuse "sudo rejects its rule for $deployer"
    rm -f "$dir/.sudoers"
    install_file /etc/sudoers.d/"$service" 440
}

install_units() {
    changed=
    for unit in "$service.socket" "$service.service" "$service@.service"; do
        install_file "/etc/systemd/system/$unit" 644
    done
    # A setup that was interrupted may have written a unit that systemd has not read.
    if [ -n "$changed" ] ||
        systemctl show --property NeedDaemonReload "$service.socket" "$service.service" | grep -q =yes; then
        systemctl daemon-reload
    fi
    systemctl is-enabled --quiet "$service.socket" "$service.service" 2>/dev/null ||
        systemctl --quiet enable "$service.socket" "$service.service"
}

say() {
    printf '%s\n' "$*"
}

refuse() {
    echo "$*" >&2
    exit 1
}
