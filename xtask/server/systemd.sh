# The manager for a machine with systemd. SERVICE.socket holds the port, and an instance is
# a SERVICE@INSTANCE.service.
#
# shellcheck shell=sh
# shellcheck disable=SC2034 # `restarts` and `reason` are read in activate.sh
# shellcheck disable=SC2154 # and what is read here is set there

# A transient service inherits nothing from the caller: no limits, environment, umask or
# descriptors, and logind does not kill it with the session. Its remaining processes are
# killed before `heal` runs. Only its main process may extend its time, because the deploy
# user can trace those that read an upload.
systemd_detach() { # ACTIVATION ACCOUNT REQUEST [ARGUMENT...]
    log=$dir/log/$1
    seconds=$(shift 2 && time_limit "$@")
    systemd-run --quiet --collect --no-block \
        --unit "$service-activation-$1" --description "$service: ${*}" \
        --property "StandardOutput=append:$log" --property "StandardError=append:$log" \
        --property KillSignal=SIGKILL \
        --property "RuntimeMaxSec=$seconds" --property NotifyAccess=main \
        --property "ExecStopPost=$dir/bin/activate heal $*" \
        --property "TimeoutStopSec=$((2 * drain + ready + 30))" \
        -- "$dir/bin/activate" perform "$@"
}

# The nearest process above this one that is sshd and root's has let the client in, and the
# journal has what it said then. Anybody can call a program sshd, so its file counts, which in
# a container root may be unable to see.
systemd_login() {
    pid=$$
    while [ "$pid" -gt 1 ]; do
        while read -r key value _; do
            case $key in
                Name:) name=$value ;;
                PPid:) parent=$value ;;
                Uid:) uid=$value ;;
            esac
        done <"/proc/$pid/status"
        case $uid:$name in
            0:sshd*) case $(readlink "/proc/$pid/exe" || echo unseen) in unseen | /usr/*/sshd*) break ;; esac ;;
        esac
        pid=$parent
    done
    journalctl --quiet --lines 50 --output cat _UID=0 "_PID=$pid" | sed -n \
        's/^Accepted .* from \([^ ]*\) port [0-9]* ssh2\(: [^ ]* \(SHA256:.\{16\}\)\)\{0,1\}.*/\1,\3/p' |
        tail -n 1
} 2>/dev/null

# At first the time is that of RuntimeMaxSec.
systemd_extend() { # SECONDS
    [ -z "$waited" ] || systemd-notify "EXTEND_TIMEOUT_USEC=${1}000000" || :
}

# `systemctl start` returns when the app has said that it is ready (Type=notify). It has a
# deadline, because an app may ask systemd for more time again and again. The socket is
# started only if needed, because that waits for instances that still drain.
systemd_start() { # INSTANCE
    reason="the port could not be opened"
    systemd_unit "$service.socket"
    [ "$state" = active ] || systemctl start "$service.socket" || return 1
    units="$units$service@$1.service=activating=0 "
    read -r began _ </proc/uptime
    timeout "$((ready + 2))" systemctl start "$service@$1.service" && return
    read -r now _ </proc/uptime
    # Not by the unit's result, because systemd may have started it again meanwhile.
    if [ "$((${now%.*} - ${began%.*}))" -ge "$ready" ]; then
        reason="it was not ready within $ready s"
    else
        reason="it exited before it was ready"
    fi
    return 1
}

# One call for all units, because each call takes 10 ms. The properties of a unit end with
# an empty line.
systemd_refresh() {
    shown=$(systemctl show --property Id,ActiveState,NRestarts "$service.socket" "$service@*.service") || return
    units=' ' unit='' state='' restarts=''
    while IFS='=' read -r key value; do
        case $key in
            Id) unit=$value ;;
            ActiveState) state=$value ;;
            NRestarts) restarts=$value ;;
            '') units="$units$unit=$state=$restarts " ;;
        esac
    done <<END
$shown

END
}

# Sets `state` and `restarts` as they were at the last refresh.
systemd_unit() { # UNIT
    state=inactive restarts=0
    case $units in *" $1="*) ;; *) return ;; esac
    shown=${units#*" $1="}
    shown=${shown%% *}
    state=${shown%=*} restarts=${shown#*=}
}

systemd_is_running() { # INSTANCE
    systemd_unit "$service@$1.service"
    case $state in inactive | failed) return 1 ;; esac
}

systemd_is_healthy() { # INSTANCE
    systemd_unit "$service@$1.service"
    [ "$state" = active ] && systemd_answers "$1" 2
}

# An app may say that it is ready, and accept nothing. All instances accept from one socket, so
# this asks until the answer names the right one. Each try may last as long as all before it
# together: a short one gets away from another instance that is stuck, a long one waits for a
# slow answer.
systemd_answers() { # INSTANCE [SECONDS [STATUS]]
    perl -MSocket=:all -e '
        my ($listen, $instance, $seconds, $status) = @ARGV;
        my ($host, $port) = $listen =~ /^\[?(.*?)\]?:(\d+)$/;
        my $address = $listen =~ m,^/, ? sockaddr_un($listen)
            : (getaddrinfo($host, $port, {flags => AI_NUMERICHOST}))[1]{addr};
        my ($begin, $elapsed) = (time, 0);
        $SIG{PIPE} = "IGNORE";
        $SIG{ALRM} = sub { die };
        sub asks_it {
            my $head = "";
            my $left = $seconds + 1 - $elapsed;
            alarm($elapsed + 1 < $left ? $elapsed + 1 : $left);
            socket(my $socket, sockaddr_family($address), SOCK_STREAM, 0);
            connect($socket, $address);
            syswrite($socket, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            1 while length $head < 65536 && $head !~ /\r\n\r\n/ && sysread($socket, $head, 4096, length $head);
            return $head =~ m,^HTTP/1\.. $status , && $head =~ /^cutover-instance: *\Q$instance\E\r$/im;
        }
        until (eval { asks_it }) {
            alarm 0;
            $elapsed = time - $begin;
            exit 1 if $elapsed > $seconds;
            select undef, undef, undef, 0.01;
        }
    ' "$listen" "$1" "${2-$ready}" "${3-200}"
}

systemd_still_healthy() { # INSTANCE
    systemd_refresh
    systemd_unit "$service@$1.service"
    if [ "$state" != active ]; then
        reason='it exited'
    elif [ "$restarts" != 0 ]; then
        reason='it was restarted'
    elif ! port_is_open; then
        reason='it had closed the port'
    else
        return 0
    fi
    return 1
}

systemd_stop() { # INSTANCE
    ! systemd_is_running "$1" || systemctl stop --no-block "$service@$1.service" || :
}

systemd_kill() { # INSTANCE
    systemctl kill --signal KILL "$service@$1.service" || :
}

# Any instance can shut the shared socket down. systemd then opens another one, which the live
# instance does not have. So the port counts as open only if the live instance answers on it,
# whatever it answers.
systemd_open_port() {
    i=$(serving_instance)
    [ -n "$i" ] || return 0
    systemd_refresh
    systemd_unit "$service.socket"
    if [ "$state" = active ] && systemd_answers "$i" "$ready" ...; then return; fi
    say "Warning the port was closed; restarting $i"
    systemd_kill "$i"
    systemctl restart "$service.socket" || :
}

systemd_close_port() {
    systemctl stop "$service.socket"
}

# The journal may not have read yet what an instance said at its end.
systemd_log_tail() { # INSTANCE LINES
    timeout 5 journalctl --sync || :
    journalctl --unit "$service@$1.service" --lines "$2" --output cat --no-pager
}

# The pattern matches instances that have logged before; the slice, also later ones.
systemd_logs() { # LINES [follow]
    journalctl --unit "$service@*.service" --unit "system-$(systemd-escape "$service").slice" \
        --lines "$1" ${2+--follow} --no-pager
}

# With the settings of the instances' unit, but those that are about serving.
systemd_run() { # COMMAND...
    settings=$(systemctl cat "$service@.service" | awk -v service="$service" '
        /^\[/ { inside = $0 == "[Service]"; next }
        inside && /^[A-Z][A-Za-z]*=/ && !/^(Type|Sockets|NonBlocking|ExecStart|Restart|RestartSec|Timeout[A-Za-z]*|WatchdogSec)=/ {
            gsub("%p", service)
            print
        }')
    count=$#
    while IFS= read -r setting; do
        set -- "$@" --property "$setting"
    done <<END
$settings
END
    # The command goes to the end. systemd would replace variables in it.
    set -- "$@" --
    while [ "$((count -= 1))" -ge 0 ]; do
        set -- "$@" "$(printf '%s\n' "$1" | sed 's/\$/$$/g')"
        shift
    done
    exec systemd-run --quiet --collect --pipe --wait --service-type exec \
        --unit "$service-run-$$" --property TimeoutStopSec=5 "$@"
}

systemd_end_run() { # PID
    systemctl stop "$service-run-$$"
}
