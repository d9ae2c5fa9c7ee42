# The manager for a machine without systemd. An instance is a background process that
# opens the port itself, shared by SO_REUSEPORT, and has its pid in run/INSTANCE.pid.
#
# shellcheck shell=sh
# shellcheck disable=SC2034 # `restarts` and `reason` are read in activate.sh
# shellcheck disable=SC2046,SC2086 # the words of nohup_as_app are words
# shellcheck disable=SC2154 # and what is read here is set there

nohup_detach() { # ACTIVATION ARGUMENT...
    setsid nohup "$dir/bin/activate" supervise "$@" >>"log/$1" 2>&1 </dev/null &
}

nohup_login() {
    : # Without systemd's journal nobody can be asked.
}

supervise() { # ACTIVATION ARGUMENT...
    # Caught, not ignored, because children would inherit that.
    trap : HUP INT TERM
    # The shell's own message about a killed child is not for the log.
    { setsid "$dir/bin/activate" perform "$@" 2>&1 || :; } 2>/dev/null
    # What it left, such as a frozen child that has the lock.
    ! read -r _ worker <"log/$1" || kill -KILL "-$worker" 2>/dev/null || :
    timeout --signal KILL "$((2 * drain + ready + 30))" "$dir/bin/activate" heal "$@"
}

# A process beside this one kills it, and what it started. It ends with this one at the latest.
nohup_extend() { # SECONDS
    [ -z "$waited" ] || kill "$killer"
    { sleep "$1" && kill -KILL "-$$"; } 7>&- 8>&- 9>&- &
    killer=$!
}

# The process writes down its own pid before it becomes the app, so that no instance ever
# runs that this script cannot find.
nohup_start() { # INSTANCE
    ! nohup_is_taken "$1" || return 1
    nohup_spawn "$1" >>"log/$service-$1" 2>&1 </dev/null 8>&- 9>&- &
    child=$!
    deadline=$(($(date +%s) + ready))
    until nohup_is_healthy "$1"; do
        if has_exited "$child"; then
            status=0
            wait "$child" || status=$?
            reason="it exited with status $status before it was ready"
            return 1
        elif [ "$(date +%s)" -gt "$deadline" ]; then
            reason="it was not ready within $ready s: $reason"
            return 1
        fi
        sleep 0.05
    done
}

# Whether an app that was not started here answers on the port. By SO_REUSEPORT clients
# would meet either. A later instance shares the port with the one before it, so only the
# first one is asked, by the health check of our crate. Another directory may have an
# instance of the same name.
nohup_is_taken() { # INSTANCE
    for i in $(instances); do ! nohup_is_running "$i" || return 1; done
    holder=$1
    nohup_is_healthy "$1" || case $reason in
        *'only other instances answer'*) holder=${reason##* } ;;
        *) return 1 ;;
    esac
    reason="$listen is taken by $holder, which was not started from $dir: stop it, or use another address"
}

nohup_spawn() { # INSTANCE
    trap - INT TERM
    # shellcheck disable=SC2016 # for the inner shell
    nohup_exec /usr/bin/setsid /usr/bin/nohup \
        /bin/sh -c 'echo $$ >"$1" && shift && exec "$@"' sh "run/$1.pid" $(nohup_as_app) "$dir/run/$service-$1"
}

# With the app's environment. `env` may set anything, so it is read last.
nohup_exec() { # COMMAND...
    mkdir -p -m 700 state
    set -- /usr/bin/env LISTEN="$listen" DRAIN_SECONDS="$drain" STATE_DIRECTORY="$dir/state" "$@"
    if [ -s env ]; then
        read_env check || exit 1
        set -a
        # shellcheck source=/dev/null
        . ./env
        set +a
    fi
    exec "$@"
}

nohup_run() { # COMMAND...
    nohup_exec $(nohup_as_app) "$@"
}

nohup_end_run() { # PID
    kill -TERM "$1" && sleep 5 && kill -KILL "$1"
}

# Prints the command that gives up root, of no or several words. It leaves the right to
# open a port below 1024, which is systemd's task elsewhere.
nohup_as_app() {
    [ -n "${user-}" ] || return 0
    port='-all,+net_bind_service'
    [ "${listen##*:}" -lt 1024 ] || port=-all
    echo /usr/bin/setpriv --reuid "$user" --regid "$user" --init-groups --no-new-privs \
        "--inh-caps=$port --ambient-caps=$port --bounding-set=$port" --
}

nohup_refresh() {
    : # Each instance is examined when it is asked for.
}

nohup_is_healthy() { # INSTANCE
    restarts=0
    reason=$(LISTEN=$listen timeout --signal KILL 2 $(nohup_as_app) "run/$service-$1" healthcheck </dev/null 2>&1 8>&- 9>&-)
}

nohup_answers() { # INSTANCE
    : # It did so before it was taken for ready.
}

nohup_still_healthy() { # INSTANCE
    nohup_is_running "$1" || { reason='it exited'; return 1; }
    nohup_is_healthy "$1"
}

# Compares the command, too, because the pid may belong to another process by now.
nohup_is_running() { # INSTANCE
    read -r pid <"run/$1.pid" && [ "$(process_name "$pid")" = "$dir/run/$service-$1" ]
} 2>/dev/null

# By its state, because the command line is empty for a moment during exec(2).
has_exited() { # PID
    IFS= read -r stat <"/proc/$1/stat" || return 0
    case ${stat##*) } in Z* | X*) ;; *) return 1 ;; esac
} 2>/dev/null

nohup_stop() { # INSTANCE
    ! nohup_is_running "$1" || kill -TERM "$pid" || :
}

nohup_kill() { # INSTANCE
    ! nohup_is_running "$1" || kill -KILL "$pid" || :
}

nohup_open_port() {
    : # Each instance opens a socket of its own.
}

nohup_close_port() {
    : # Each instance closes its own socket.
}

nohup_log_tail() { # INSTANCE LINES
    tail -n "$2" "log/$service-$1"
}

# When an instance exits, goes on with the next one.
nohup_logs() { # LINES [follow]
    lines=$1
    refresh
    i=$(serving_instance)
    [ -n "$i" ] || [ $# = 2 ] || i=$(last_instance) || die "nothing was ever started"
    [ $# = 2 ] || exec tail -n "$lines" "log/$service-$i"
    while :; do
        until [ -n "$i" ] && nohup_is_running "$i"; do
            sleep 0.2
            refresh
            i=$(serving_instance)
        done
        tail -n "$lines" -f -s 0.2 --pid="$pid" "log/$service-$i"
        i='' lines=+1
    done
}

last_instance() {
    # shellcheck disable=SC2012 # these file names have no special characters
    last=$(ls -t log/"$service"-2* 2>/dev/null | head -n 1) && [ -n "$last" ] &&
        echo "${last#log/"$service"-}"
}
