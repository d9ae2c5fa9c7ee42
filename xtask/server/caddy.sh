# The part of the preparation for a target with a `domain`: Debian's Caddy, and the site of
# this service. Each site is a file of its own; those of other services stay as they are.
#
# Only a changed file makes Caddy read its configuration, because that closes connections of
# clients.
#
# shellcheck shell=sh
# shellcheck disable=SC2154 # service and domain are set in prepare.sh
caddyfile=/etc/caddy/Caddyfile
sites=/etc/caddy/sites
drop_in=/etc/systemd/system/caddy.service.d/cutover.conf
# Exists while the files are newer than what Caddy has read, and says how it has to read them.
unread=/etc/caddy/.unread

check_site() {
    site=$sites/$service.caddy
    if [ -e "$site" ] && ! grep -qF "unix//run/$service/http.sock" "$site"; then
        refuse "$site was not created by \`setup\` for $service"
    fi
    [ -n "$domain" ] || return 0
    [ "$manager" = systemd ] || refuse "$domain needs Caddy, which \`setup\` installs only where systemd runs; give the target a \`listen\` address"
    check_port_is_free 80
    check_port_is_free 443
    if [ -e "$caddyfile" ] && ! is_debians_caddyfile && ! grep -qE '^[[:space:]]*import .*sites/\*' "$caddyfile"; then
        refuse "$caddyfile is somebody else's; add the line \`import $sites/*.caddy\` to it and try again"
    fi
    check_domain_is_free
    check_caddy_can_be_installed
    check_domain_leads_here
}

# Names the program, or for systemd the unit, since systemd holds the ports of sockets.
check_port_is_free() { # PORT
    listening=$(ss --listening --tcp --numeric --processes --no-header "sport = :$1")
    case $listening in '' | *'"caddy"'*) return ;; esac
    taken_by=$(systemctl list-sockets --no-legend | awk -v port=":$1" 'index($1 " ", port " ") { print $2; exit }')
    [ -n "$taken_by" ] || taken_by=$(printf '%s\n' "$listening" | sed -n 's/.*users:(("\([^"]*\)".*/\1/p' | head -n 1)
    refuse "its port $1 is taken by ${taken_by:-another program}, and $domain needs it"
}

is_debians_caddyfile() {
    dpkg-query --showformat '${Conffiles}\n' --show caddy 2>/dev/null |
        grep -qF " $caddyfile $(md5sum <"$caddyfile" | cut -d ' ' -f 1)"
}

check_domain_is_free() {
    pattern=$(printf '%s' "$domain" | sed 's/\./\\./g')
    for file in "$caddyfile" "$sites"/*.caddy; do
        if [ -e "$file" ] && [ "$file" != "$sites/$service.caddy" ] &&
            grep -qE "^([^#]*[[:space:],/])?$pattern([[:space:],:{]|\$)" "$file"; then
            refuse "$domain is already in $file"
        fi
    done
}

check_caddy_can_be_installed() {
    [ "$service" != caddy ] || refuse "the name caddy is Caddy's own; choose another one"
    { [ -x /usr/bin/caddy ] || apt_offers_caddy; } && return
    apt_get update >/dev/null 2>&1 || :
    apt_offers_caddy ||
        refuse "apt offers no package caddy, which $domain needs and Debian has since release 12; install Caddy from caddyserver.com, or give the target a \`listen\` address"
}

apt_offers_caddy() {
    apt-cache show caddy >/dev/null 2>&1
}

check_domain_leads_here() {
    addresses=$(timeout 10 getent ahosts "$domain" | awk '{ print $1 }' | sort -u) || :
    [ -n "$addresses" ] || say "Warning $domain has no DNS address yet; its certificate comes when it has one"
    own=" $(ip -oneline address show | awk '{ sub("/.*", "", $4); print $4 }' | tr '\n' ' ')"
    for address in $addresses; do
        case $address$own in
            127.* | *" $address "*) ;;
            *) say "Warning $domain leads to $address, which is no address of this host; its certificate needs a way from there to here" ;;
        esac
    done
}

install_site() {
    [ -n "$domain" ] || [ -e "$site" ] || return 0
    [ -x /usr/bin/caddy ] || install_package caddy || refuse "it lacks caddy"
    keep_old "$caddyfile" "$drop_in" "$site"
    if [ -n "$domain" ]; then
        put_site
    else
        say "Removing $site"
        mark_unread reload
        rm "$site"
    fi
    [ ! -e "$unread" ] || read_configuration
    rm -rf "$kept"
}

put_site() {
    is_admin_private ||
        say "Warning every user of this host may configure Caddy; \`admin unix//run/caddy/admin.sock\` in $caddyfile forbids it"
    make_directory "$sites" root 755
    make_directory "${drop_in%/*}" root 755
    # A new admin socket needs a restart.
    put "$drop_in" restart
    if [ ! -e "$caddyfile" ] || is_debians_caddyfile; then
        mark_unread restart
        rm -f "$caddyfile"
        put "$caddyfile" restart
    fi
    put "$site" reload
    systemctl is-active --quiet caddy || mark_unread restart
}

is_admin_private() {
    [ ! -e "$caddyfile" ] || is_debians_caddyfile || grep -qE '^[[:space:]]*admin[[:space:]]+(unix/|off)' "$caddyfile"
}

put() { # FILE restart|reload
    if ! content "$1" | cmp -s - "$1"; then
        mark_unread "$2"
        install_file "$1" 644
    fi
}

mark_unread() { # restart|reload
    [ -e "$unread" ] && [ "$1" = reload ] || echo "$1" >"$unread"
}

keep_old() { # FILE...
    kept=$(mktemp -d)
    for file in "$@"; do
        mkdir -p "$kept${file%/*}"
        [ ! -e "$file" ] || cp --preserve "$file" "$kept$file"
    done
}

# What Caddy refuses is neither in force nor on the disk afterwards.
read_configuration() {
    say "Loading Caddy's configuration"
    if ! validate_configuration; then
        refusal="Caddy rejects it: $message"
        put_back
        refuse "$refusal"
    elif ! load_configuration; then
        refusal="Caddy does not load it: $message"
        put_back
        # A reload that fails leaves servers behind that take half of the connections.
        verb=restart
        load_configuration || refusal="$refusal; nor the old one: $message"
        refuse "$refusal"
    fi
    rm "$unread"
}

put_back() {
    for file in "$caddyfile" "$drop_in" "$site"; do
        if [ -e "$kept$file" ]; then cp --preserve "$kept$file" "$file"; else rm -f "$file"; fi
    done
    rm -rf "$unread" "$kept"
}

validate_configuration() {
    message=$(as_caddy caddy validate --config "$caddyfile" --adapter caddyfile 2>&1) && return
    message=$(printf '%s\n' "$message" | tail -n 1)
    return 1
}

# Not by `systemctl reload`, which waits for ever if Caddy refuses.
load_configuration() {
    [ ! -e "$unread" ] || read -r verb <"$unread"
    systemctl daemon-reload
    systemctl --quiet enable caddy
    if [ "$verb" = restart ]; then
        message=$(systemctl restart caddy 2>&1) && return
        # The journal may not have read yet what Caddy said at its end.
        timeout 5 journalctl --sync || :
        message=$(journalctl --unit caddy --lines 20 --output cat --no-pager | grep -m 1 '^Error:') || :
    else
        message=$(as_caddy timeout 60 caddy reload --config "$caddyfile" --adapter caddyfile --force 2>&1) && return
        message=$(printf '%s\n' "$message" | tail -n 1)
    fi
    return 1
}

# Because Caddy creates its folders when it looks at a configuration.
as_caddy() { # COMMAND...
    setpriv --reuid caddy --regid caddy --init-groups env HOME=/var/lib/caddy "$@"
}
