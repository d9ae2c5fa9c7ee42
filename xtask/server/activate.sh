#!/bin/sh
# Makes a version live on a server. `setup` installs this file, followed by its managers
# systemd.sh and nohup.sh, as bin/activate.
#
# A version is one binary, versions/SERVICE-VERSION. An instance is one run of it,
# VERSION.N, executed through a link of its own, run/SERVICE-VERSION.N.
#
# Wherever this script is killed, `current` names a complete version that has been ready
# here, and something valid serves. `perform_activate` shows the order of steps that
# ensures this. `heal`, which the manager runs after each `perform`, stops all but the live
# version and gives the verdict of a `perform` that was killed.
#
# A manager provides these functions, each named MANAGER_FUNCTION. Those that fail set
# `reason`.
#   detach ARGUMENT...       run `perform ARGUMENT...` and then, however that ends, `heal
#                            ARGUMENT...`, outside of the session of the caller
#   login                    print ADDRESS,KEY of the ssh login that this process belongs to
#   extend SECONDS           kill this `perform` by force in so many seconds, not before
#   refresh                  read the state of all instances, which the others use
#   is_running INSTANCE      whether it has a process, also one that is stopping
#   is_healthy INSTANCE      whether it is ready and answers; sets `restarts`
#   answers INSTANCE         wait until it answers a request, at most `ready` seconds
#   still_healthy INSTANCE   whether it serves and was not restarted; refreshes
#   start INSTANCE           start it through its link, and wait until it is ready
#   stop INSTANCE            have it drain and exit; does not wait
#   kill INSTANCE            end it now
#   open_port                make sure that the port of the live instance is open
#   close_port               take no more connections
#   log_tail INSTANCE LINES  the last lines of its log
#   logs LINES [follow]      the log of all instances
#   run COMMAND...           become COMMAND, with the app's user, sandbox and environment
#   end_run PID              end what `run` in the process PID has become
#
# Open descriptors: 3 the client's input, 4 the input of a `run`, 7 a place in the queue,
# 8 the client's decision, 9 the lock.
#
# shellcheck shell=sh
# shellcheck disable=SC2154 # service, manager and so on come from ./settings
# shellcheck disable=SC2015 # in A && B || C, C is meant for a failing B too
set -eu

# The largest upload, and how long reading it may take. The input of `run` comes over the
# network, so it may take longer.
MAX_UPLOAD_BYTES=1073741824
UPLOAD_TIMEOUT_SECS=60
MIN_BYTES_PER_SEC=100000
# How many activations may wait for the lock, and for how long.
MAX_QUEUED=12
LOCK_TIMEOUT_SECS=900
# The state tells of at most so many versions that can be rolled back to by name.
MAX_KEPT_SHOWN=100
# How long a client that runs the live version once may be silent.
CLIENT_TIMEOUT_SECS=60
# How long an activation waits for its client's commit.
COMMIT_TIMEOUT_SECS=60
# What a `perform` needs besides its waiting: for flushing to the disk, for example.
WORK_SECS=60
# Above the highest pid that Linux gives, 2^22.
NO_PID=4194305

usage() {
    cat >&2 <<'END'
usage: activate session      print the state, then carry out one request, read from
                             stdin: one of those up to `run`. The deploy user may do
                             nothing else
       activate activate VERSION SHA256 BY [await-commit]
                             make VERSION live, detached, and follow that
       activate follow ACTIVATION
                             print what an activation says, until its verdict
       activate start|stop   start the live version; stop serving
       activate logs LINES [follow]
                             print the app's log
       activate history      print the verdicts, oldest first
       activate run COUNT BYTES
                             run the live version once; its COUNT arguments are the next
                             lines of stdin, then come BYTES of input for it. The client
                             goes on with a byte every few seconds, or the run is ended
       activate status       print the state
       activate env          print the names in the app's environment file, for root
       activate env-set|env-unset NAME
                             set NAME to what is read from stdin; remove it
END
    exit 2
}

main() {
    enter_directory
    run_verb "$@"
}

# sudo keeps the caller's folder and may keep more; nothing of it is used.
enter_directory() {
    login=''
    export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    umask 022
    cd "${0%/*}/.."
    dir=$(pwd -P)
    # `setup` writes service, manager (systemd or nohup), listen, overlap (true or false),
    # ready, settle and drain in seconds, and keep, a number of versions. Without systemd
    # it also writes `user`, which runs the app on a server.
    [ -r settings ] || die "not set up: there is no $dir/settings"
    # shellcheck source=/dev/null
    . ./settings
}

run_verb() { # VERB ARGUMENT...
    case ${1-}:$# in
        session:1 | status:1 | boot:1) "$1" ;;
        env:1 | env-unset:2 | env-set:2)
            [ $# = 1 ] || is_variable "$2" || die "not a name of a variable: '$2'"
            case $1 in
                env) [ ! -s env ] || read_env names ;;
                env-set) env_set "$2" ;;
                env-unset) env_unset "$2" ;;
            esac
            ;;
        perform:* | heal:* | supervise:*)
            [ $# -ge 4 ] && is_activation "$2" || usage
            "$@"
            ;;
        *) run_request "$@" ;;
    esac
}

run_request() { # REQUEST ARGUMENT...
    case ${1-}:$# in
        activate:4 | activate:5)
            check_activation "$@"
            detach "$@"
            ;;
        start:1 | stop:1) detach "$1" ;;
        follow:2)
            is_activation "$2" || die "not an activation: '$2'"
            follow "$2"
            ;;
        logs:2 | logs:3)
            case $2 in '' | *[!0-9]* | ???????*) die "not a number of lines: '$2'" ;; esac
            case ${3-follow} in follow) ;; *) usage ;; esac
            shift
            "${manager}_logs" "$@"
            ;;
        history:1) history ;;
        run:3)
            case $2 in '' | *[!0-9]* | ???*) die "not a number of arguments: '$2'" ;; esac
            case $3 in '' | *[!0-9]* | ???????????*) die "not a number of bytes: '$3'" ;; esac
            run_once "$2" "$3"
            ;;
        *) usage ;;
    esac
}

# The version's name ends with the beginning of its sha256.
check_activation() { # activate VERSION SHA256 BY [await-commit]
    is_version "$2" || die "not a version: '$2'"
    is_sha256 "$3" || die "not a sha256: '$3'"
    case $3 in "${2##*-}"*) ;; *) die "not the sha256 of $2: '$3'" ;; esac
    is_user_at_host "$4" || die "not a user@host: '$4'"
    case ${5-await-commit} in await-commit) ;; *) usage ;; esac
}

# Most clients read the state and then request something. Both in one session saves two
# round trips.
session() {
    status
    echo
    # Meanwhile the client does something else.
    login=$("${manager}_login") || login=''
    line=$(read_line) || exit 0
    set -f
    # shellcheck disable=SC2086 # each word is an argument
    set -- $line
    set +f
    run_request "$@"
}

# In a subshell with little memory, because a line may have no end.
read_line() {
    # shellcheck disable=SC3045 # dash and busybox have `ulimit -v`
    ulimit -v 65536
    IFS= read -r line && printf '%s\n' "$line"
}

# --- Detached work, and following it ----------------------------------------------

# Runs detached, so that it reaches a verdict even if the client is gone, and so that the
# lock is never held by a process which writes into a pipe of the client's.
detach() { # REQUEST ARGUMENT...
    activation=$(date -u +%Y%m%dT%H%M%SZ)-$$
    true >"log/$activation" || die "cannot write $dir/log"
    [ $# != 5 ] || mkfifo -m 600 "log/$activation.answer" || die "cannot write $dir/log"
    account=${SUDO_USER:-$(id -un)}
    is_user_at_host "$account" || account=unknown
    "${manager}_detach" "$activation" "$account${login:+,$login}" "$@" || die "cannot run anything detached"
    echo "activation $activation"
    tries=300
    until read -r _ worker <"log/$activation"; do
        [ "$((tries -= 1))" -gt 0 ] || { await_without_log "$1"; return; }
        sleep 0.01
    done
    follow_worker
}

# On a full disk the log stays empty. `start` and `stop` do their work all the same.
await_without_log() { # REQUEST
    flock --timeout "$LOCK_TIMEOUT_SECS" 9 9<lock || die "another activation took too long"
    if read -r _ worker <"log/$activation"; then
        follow_worker
        return
    fi
    refresh
    case $1:$(serving_instance) in
        start:?* | stop:) echo "verdict done" ;;
        *) die "cannot write $dir/log" ;;
    esac
}

follow() { # ACTIVATION
    [ -f "log/$1" ] || die "no such activation: $1"
    read -r _ worker <"log/$1" || die "activation $1 did not begin"
    case $worker in '' | *[!0-9]*) die "activation $1 did not begin" ;; esac
    activation=$1
    # The pid may belong to another process by now; then one that cannot exist is watched.
    case $(process_name "$worker") in *activateperform*) ;; *) worker=$NO_PID ;; esac
    follow_worker
}

# Prints the log up to the verdict. If the worker is killed, `heal` appends one. Succeeds
# unless the verdict is `failed`.
follow_worker() {
    exec 3<&0
    [ ! -p "log/$activation.answer" ] || pass_answer &
    # sed exits with 3 at a verdict, so the block runs if the worker ended without one.
    tail -n +1 -f -s 0.02 --pid="$worker" "log/$activation" 2>/dev/null | sed -u '/^verdict /q3' && {
        tries=100
        until has_verdict || [ "$((tries -= 1))" = 0 ]; do sleep 0.1; done
        grep '^verdict ' "log/$activation" || return 0
    }
    ! grep -q '^verdict failed' "log/$activation"
}

has_verdict() {
    grep -q '^verdict ' "log/$activation"
}

# The client answers in one line whether to go on: commit or cancel.
pass_answer() {
    answer=$(read_line) && case $answer in commit | cancel) ;; *) return ;; esac
    # Opened for reading, too, because opening a FIFO only for writing would block.
    echo "$answer" 1<>"log/$activation.answer"
    # If the activation is over, its FIFO is gone, and the line above has made a file.
    [ -p "log/$activation.answer" ] || rm -f "log/$activation.answer"
} <&3 >/dev/null 2>&1

perform() { # ACTIVATION ACCOUNT REQUEST ARGUMENT...
    activation=$1 account=$2 request=$3
    shift 3
    new='' old='' attempt_marked='' recorded='' found_killed='' waited=''
    say "worker $$"
    limit=$(time_limit "$request" "$@")
    "${manager}_extend" "$limit"
    take_lock
    say "Locked"
    trap 'fail "it was stopped (status $?)"' EXIT
    trap 'exit 143' INT TERM
    case $request in
        activate) perform_activate "$@" ;;
        start) perform_start ;;
        stop) perform_stop ;;
    esac
    trap - EXIT
    prune
    finish
}

# Prints the seconds after which a `perform` that has the lock is killed, because it must be
# frozen. That is longer than it waits for anything.
time_limit() { # REQUEST [VERSION SHA256 BY [await-commit]]
    seconds=$((2 * UPLOAD_TIMEOUT_SECS + ready + ${settle%.*} + drain + WORK_SECS))
    [ "$overlap" = true ] || seconds=$((seconds + 2 * drain + ready))
    [ $# != 5 ] || seconds=$((seconds + COMMIT_TIMEOUT_SECS))
    echo "$seconds"
}

# The lock is free while old instances drain.
finish() {
    exec 9>&-
    rm -f "log/$activation.answer"
    wait_until_stopped 10 || :
    exit 0
}

# Bounds how many processes a client can leave waiting.
take_place_in_queue() {
    place=0
    until exec 7>>"log/.queue.$place" && flock --nonblock 7; do
        [ "$((place += 1))" -lt "$MAX_QUEUED" ] || refuse "$MAX_QUEUED others are waiting already"
    done
}

# The lock is released when this process exits. Processes that outlive it are started
# with descriptor 9 closed.
take_lock() {
    exec 9>>lock
    ! flock --nonblock 9 || return 0
    take_place_in_queue
    wait_for_lock
    exec 7>&-
}

wait_for_lock() {
    tries=10
    # The holder may not have written yet what it is doing.
    until read_attempt || [ "$((tries -= 1))" -lt 0 ]; do
        ! flock --timeout 0.1 9 || return 0
    done
    if read_attempt; then
        say "Waiting for $attempt_by, who has been activating $attempt_version since $attempt_at"
    else
        say "Waiting for another command"
    fi
    # A frozen one is killed here as well, so it does not keep its place in the queue.
    waited=0
    until flock --timeout "$((limit / 2))" 9; do
        waited=$((waited + limit / 2))
        [ "$waited" -lt "$LOCK_TIMEOUT_SECS" ] || refuse "another activation took too long"
        "${manager}_extend" "$limit"
    done
    "${manager}_extend" "$limit"
}

# Ends a request that did not begin, so there is nothing to record or to undo.
refuse() { # REASON
    rm -f "log/$activation.answer"
    say "verdict failed $1"
    exit 0
}

# --- Activation -----------------------------------------------------------------

perform_activate() { # VERSION SHA256 BY [await-commit]
    version=$1 sha256=$2 await_commit=${4-}
    by=$(who_acted "$account" "$3")
    # Opened before it is needed, so that an early answer is kept.
    [ -z "$await_commit" ] || exec 8<>"log/$activation.answer"
    at=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    clean_up || fail "$reason"
    [ "$overlap" = true ] || wait_until_stopped 1 || fail "an old instance cannot be killed"
    mark_attempt || fail "cannot write $dir/lock"
    attempt_marked=true
    install_version
    [ "$overlap" = true ] || [ -z "$old" ] || stop_old_first
    start_new
    settle
    # With `overlap: false` nothing serves meanwhile, so it does not wait.
    [ -z "$await_commit" ] || [ "$overlap" = false ] || await_commit
    commit
    record_verdict live
    [ -z "$old" ] || stop_instance "$old"
    say_verdict live
}

# What the client claims, and what the server knows, if that says more.
who_acted() { # ACCOUNT[,ADDRESS,KEY] BY
    case $2 in "$1@"*) echo "$2" ;; *) echo "$2 as $1" ;; esac
}

# The attempt stands in `lock` until its verdict stands in `history` and in its log, so if it
# is killed, `heal` or the next activation can still record and say its verdict.
mark_attempt() {
    printf '%s\t%s\t%s\t%s\t%s\n' "$at" "$version" "$sha256" "$by" "$activation" >lock && sync lock
}

unmark_attempt() {
    true >lock
}

read_attempt() {
    IFS=$tab read -r attempt_at attempt_version attempt_sha256 attempt_by attempt_activation <lock &&
        [ -n "$attempt_activation" ]
} 2>/dev/null

# Removes what a killed activation left: incomplete files, a missing verdict, and
# instances other than the one that serves.
clean_up() {
    refresh
    old=$(serving_instance)
    stop_all_but "$old"
    [ ! -e versions/.new ] || rm -f versions/.new
    [ ! -h .current.new ] || rm -f .current.new
    reason="cannot write $dir/history"
    # A line torn by a power cut or a full disk gets too many fields to be a record.
    [ -z "$(tail -c 1 history 2>/dev/null)" ] || printf '\t\t\t\t\ttorn\n' >>history || return 1
    if read_attempt; then
        found_killed=true
        conclude_attempt || return 1
    fi
}

# The attempt's activation was killed: records its verdict, and tells whoever follows.
conclude_attempt() {
    last=$(tail -n 1 history 2>/dev/null) || :
    attempt=$attempt_version$tab$attempt_sha256$tab$attempt_by
    case $last in
        "$attempt_at${tab}live$tab$attempt") attempt_verdict=live ;;
        "$attempt_at${tab}failed$tab$attempt") attempt_verdict=failed ;;
        *)
            if [ "$attempt_version" = "$live" ]; then attempt_verdict=live; else attempt_verdict=failed; fi
            record "$attempt_at" "$attempt_verdict" "$attempt_version" "$attempt_sha256" "$attempt_by" ||
                return 1
            ;;
    esac
    unmark_attempt
    grep -qs '^verdict ' "log/$attempt_activation" || {
        [ "$attempt_verdict" = live ] || attempt_verdict='failed it was killed'
        echo "verdict $attempt_verdict" >>"log/$attempt_activation" || :
    }
}

# The sha256 is computed on a copy that only root can write to.
install_version() {
    file=versions/$service-$version
    if [ -f "$file" ]; then
        if is_intact "$file"; then return; fi
        check_replacement
    fi
    copy_upload || {
        [ ! -f "$file" ] || remove_damaged "$file"
        fail "this version is not on the server"
    }
    say "Installing $version"
    is_intact versions/.new || fail "the upload is damaged: its sha256 is not $sha256"
    is_for_this_machine versions/.new || fail "not an executable for this machine ($(uname -m))"
    { sync versions/.new && mv -T versions/.new "$file"; } ||
        fail "the version could not be stored in $dir/versions"
}

# A version that was live here is only ever replaced by the same bytes.
check_replacement() {
    ! awk -F '\t' -v version="$version" -v sha256="$sha256" \
        'NF == 5 && $2 == "live" && $3 == version && $4 != sha256 { found = 1 } END { exit !found }' \
        history 2>/dev/null || fail "another build of this name was live here"
}

# dd opens no link and waits for no FIFO. Both processes have a deadline, because the
# deploy user can stop the first one and hold the pipe between them open.
copy_upload() {
    upload=incoming/$service-$version
    as_deployer dd if="$upload" iflag=nonblock,nofollow,count_bytes count="$MAX_UPLOAD_BYTES" \
        bs=1M status=none 2>/dev/null |
        timeout --signal KILL "$UPLOAD_TIMEOUT_SECS" install -m 755 /dev/stdin versions/.new ||
        fail "the version could not be stored in $dir/versions"
    [ -s versions/.new ] || as_deployer test -e "$upload" >/dev/null
}

# So that the next deploy uploads it again.
remove_damaged() { # FILE
    [ "$version" = "$live" ] || rm -f "$1"
    fail "this version was damaged on the server; deploy it again"
}

is_intact() { # FILE
    [ "$(sha256sum <"$1")" = "$sha256  -" ]
}

# A file is for this machine if its magic, class, byte order and machine are those of a
# program that runs here. A shell would run any other file as a script.
is_for_this_machine() { # FILE
    cmp -s -n 6 "$1" /proc/self/exe && cmp -s -n 2 "$1" /proc/self/exe 18 18
}

remove_upload() {
    as_deployer rm -f "incoming/$service-$version" >/dev/null || :
}

# Uploads are read with the deploy user's rights, because a link in incoming/ must not
# reveal a file of root's. versions/.new is not open in that process, because the deploy
# user could take the descriptor (pidfd_getfd(2)) and write after the verification.
as_deployer() { # COMMAND...
    # shellcheck disable=SC3067 # dash and busybox have `-O`: owned by this user
    if [ -O incoming ]; then
        "$@"
    else
        deployer=$(stat -c %u:%g incoming)
        timeout --signal KILL "$UPLOAD_TIMEOUT_SECS" \
            setpriv --reuid "${deployer%:*}" --regid "${deployer#*:}" --clear-groups -- "$@" 2>/dev/null 8>&- 9>&-
    fi
}

# For an app of which two instances cannot run at once.
stop_old_first() {
    say "Stopping ${old%.*}"
    stop_instance "$old"
    wait_until_stopped 1 || fail "the old instance cannot be killed"
}

start_new() {
    say "Starting $version"
    new=$(next_instance "$version")
    start_instance "$new" || fail "$reason"
}

# Meanwhile the upload is removed, and the folder flushed, which has to be done before the
# commit.
settle() {
    say "Watching it for $settle s"
    "${manager}_answers" "$new" 8>&- 9>&- &
    answers=$!
    { remove_upload; sync versions; } 8>&- 9>&- &
    stored=$!
    sleep "$settle" 9>&-
    wait "$stored" || fail "the version could not be stored in $dir/versions"
    "${manager}_still_healthy" "$new" || fail "it was ready, then $reason"
    wait "$answers" || fail "it was ready, but answered no request within $ready s"
}

# With several hosts none switches before all are ready, so the client says when.
await_commit() {
    say "Ready"
    answer=$(timeout "$COMMIT_TIMEOUT_SECS" head -n 1 <&8 9>&-) ||
        fail "its client did not commit within $COMMIT_TIMEOUT_SECS s"
    [ "$answer" = commit ] || fail "its client cancelled it"
    "${manager}_still_healthy" "$new" || fail "it was ready, then $reason"
}

# From here on a reboot starts the new version, and nothing leads back to the old one.
commit() {
    ln -s "versions/$service-$version" .current.new || fail "$dir/current could not be written"
    trap - EXIT
    trap '' INT TERM
    mv -T .current.new current || fail "$dir/current could not be written"
    sync . || :
}

record_verdict() { # VERDICT
    if record "$at" "$1" "$version" "$sha256" "$by"; then
        recorded=true
    else
        say "Warning the history could not be written; the next activation will do it"
    fi
}

say_verdict() { # VERDICT
    say "verdict $1"
    [ -z "$attempt_marked" ] || [ -z "$recorded" ] || unmark_attempt
}

record() { # AT VERDICT VERSION SHA256 BY
    printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>history && sync history
}

fail() { # REASON
    trap - EXIT
    trap '' INT TERM
    [ "$request" != activate ] || undo_activation
    say_verdict "failed $1"
    prune
    finish
}

undo_activation() {
    rm -f versions/.new .current.new
    if [ -n "$new" ]; then
        quote_log "$new"
        stop_instance "$new"
        remove_upload
        # Forgets it if it has exited, so that its file is pruned.
        forget_stopped || :
    fi
    if [ "$overlap" = false ] && [ -n "$old$found_killed" ] && [ -z "$(serving_instance)" ]; then
        restart_old
    fi
    "${manager}_open_port"
    record_verdict failed
}

# Its lines are the app's: without control characters, and not endless.
quote_log() { # INSTANCE
    "${manager}_log_tail" "$1" 10 | awk '{ gsub(/[\001-\010\013-\037\177]/, ""); print "| " substr($0, 1, 500) }' || :
}

restart_old() {
    wait_until_stopped 1 || say "Warning an old instance cannot be killed"
    old=$(live_version) || return 0
    say "Starting $old again"
    start_instance "$(next_instance "$old")" || say "Warning it does not start: $reason"
}

# --- Healing --------------------------------------------------------------------

# Runs after each `perform`, however that ended, with the same arguments.
heal() { # ACTIVATION ACCOUNT REQUEST [VERSION SHA256 BY [await-commit]]
    [ "${SERVICE_RESULT-}" != success ] || return 0
    activation=$1 request=$3 by=$(who_acted "$2" "${6-}") found_killed=''
    exec 9>>lock
    until is_concluded; do
        if flock --timeout 0.1 9; then
            clean_up || :
            has_verdict || conclude_killed "$@"
            restore_service
            break
        elif ! was_marked && ! has_verdict; then
            conclude_killed "$@"
            break
        fi
    done
    finish
}

restore_service() {
    if [ "$overlap" = false ] && [ -n "$live" ] && [ -z "$(serving_instance)" ]; then
        restart_old
    fi
    "${manager}_open_port"
    prune
}

is_concluded() {
    has_verdict && ! { read_attempt && [ "$attempt_activation" = "$activation" ]; }
}

# Another activation has the lock. It concludes the attempt in `lock` before it marks its
# own, so an attempt is marked if it may still be there.
was_marked() {
    grep -q '^Locked' "log/$activation" && { ! read_attempt || [ "$attempt_activation" = "$activation" ]; }
}

conclude_killed() { # as for `heal`
    if [ "$request" = activate ]; then
        record "$(date -u +%Y-%m-%dT%H:%M:%SZ)" failed "$4" "$5" "$by" || :
    fi
    say "verdict failed it was killed"
}

# --- Pruning --------------------------------------------------------------------

# Keeps the newest $keep versions that were ever live, the live one, the one before it,
# and those that still run.
prune() {
    live=$(live_version) || live=''
    kept=' ' ahead=2
    while IFS=$tab read -r kind v _; do
        case $kind:$ahead in
            rollback:[12]) ahead=$((ahead - 1)) kept="$kept$v " ;;
            kept:*) kept="$kept$v " ;;
        esac
    done <<END
$(read_history "$keep")
END
    [ "$ahead" != 2 ] || [ -z "$live" ] || return 0
    for i in $(instances); do kept="$kept${i%.*} "; done
    for file in versions/"$service"-2*; do
        case $kept in *" ${file#versions/"$service"-} "*) ;; *) rm -f "$file" ;; esac
    done
    prune_run_and_log
    set -- incoming/*
    [ ! -e "$1" ] ||
        as_deployer find incoming -mindepth 1 -name "$service-2*" -mtime +1 -delete >/dev/null || :
}

prune_run_and_log() {
    for file in log/"$service"-2*; do
        i=${file#log/"$service"-}
        [ -e "versions/$service-${i%.*}" ] || rm -f "$file"
    done
    for file in run/2*.pid run/2*.stopping; do
        i=${file#run/}
        [ -h "run/$service-${i%.*}" ] || [ ! -e "$file" ] || rm -f "$file"
    done
    set -- log/2*
    while [ $# -gt 50 ]; do
        rm -f "$1"
        shift
    done
}

# --- State and history ----------------------------------------------------------

# Reads the live version and the state of the instances. To be repeated after a change.
refresh() {
    live=$(live_version) || live=''
    "${manager}_refresh"
}

live_version() {
    link=$(readlink current) && echo "${link#versions/"$service"-}"
}

# Reads the history once and prints
#   rollback VERSION SHA256  the live version, the one before it, and so on. "Before V"
#                            means live just before V first became live, so that
#                            repeated rollbacks do not go back and forth.
#   kept VERSION SHA256      the newest versions that were ever live, up to a number
#   last RECORD              the last record
# Only versions that are still installed count. The live version counts as the last one
# even if its record is missing. A torn line is no record.
read_history() { # NUMBER OF KEPT
    installed=' '
    for file in versions/"$service"-2*; do installed="$installed${file#versions/"$service"-} "; done
    set -- "$1" history
    [ -e history ] || set -- "$1" /dev/null
    read_attempt || attempt_version='' attempt_sha256=''
    awk -F '\t' -v keep="$1" -v live="$live" -v installed="$installed" \
        -v attempt_version="$attempt_version" -v attempt_sha256="$attempt_sha256" '
        function is_whole(line) { return split(line, fields) == 5 && length(fields[4]) == 64 }
        function is_installed(version) { return index(installed, " " version " ") }
        function went_live(version, hash) {
            if (!(version in before)) before[version] = previous
            previous = version
            if (is_installed(version)) { sha256[version] = hash; at[++count] = version }
        }
        # AT has 20 characters. Fields are split only where needed, which halves the time.
        substr($0, 22, 5) == "live\t" && is_whole($0) { went_live(fields[3], fields[4]) }
        { last_but_one = last; last = $0 }
        END {
            if (live != "" && live != previous)
                went_live(live, live == attempt_version ? attempt_sha256 : sha256[live])
            for (v = previous; v != ""; v = before[v])
                if (is_installed(v)) print "rollback\t" v "\t" sha256[v]
            for (i = count; i > 0 && kept < keep; i--)
                if (!(at[i] in seen)) {
                    seen[at[i]]
                    kept++
                    print "kept	" at[i] "	" sha256[at[i]]
                }
            if (!is_whole(last)) last = last_but_one
            if (is_whole(last)) print "last\t" last
        }
    ' "$2"
}

history() {
    [ ! -e history ] || awk -F '\t' 'NF == 5 && length($4) == 64 && $5 != ""' history
}

status() {
    printf 'service\t%s\nlisten\t%s\narch\t%s\n' "$service" "$listen" "$(uname -m)"
    [ -z "${domain-}" ] || printf 'domain\t%s\n' "$domain"
    script=$(sha256sum bin/activate)
    printf 'script\t%s\n' "${script%% *}"
    ! command -v zstd >/dev/null || printf 'zstd\ttrue\n'
    printf 'free\t%s\n' "$(($(stat -f -c '%a * %S' .)))"
    status_of_instances
    for v in versions/"$service"-2*; do
        [ ! -f "$v" ] || printf 'version\t%s\n' "${v#versions/"$service"-}"
    done
    read_history "$MAX_KEPT_SHOWN"
    if [ -e lock ] && ! flock --nonblock 9 9<lock && read_attempt; then
        printf 'busy\t%s\t%s\t%s\n' "$attempt_at" "$attempt_version" "$attempt_by"
    fi
}

status_of_instances() {
    refresh
    [ -z "$live" ] || printf 'live\t%s\n' "$live"
    serving=$(serving_instance)
    if [ -n "$serving" ]; then
        ! "${manager}_is_healthy" "$serving" || printf 'healthy\ttrue\n'
        printf 'restarts\t%s\n' "$restarts"
    fi
    for i in $(instances); do
        ! "${manager}_is_running" "$i" || printf 'running\t%s\n' "${i%.*}"
    done
}

# --- Start and stop, without an activation --------------------------------------

perform_start() {
    start_live || fail "$reason"
    say "verdict done"
}

# At boot; an instance that does not start is left to its manager, which tries again.
boot() {
    activation=boot request=boot found_killed=''
    exec 9>>lock
    flock --timeout "$LOCK_TIMEOUT_SECS" 9 || die "another activation took too long"
    start_live || die "$reason"
}

start_live() {
    clean_up || say "Warning $reason"
    reason="nothing to start: no version is live yet"
    [ -n "$live" ] || return 1
    [ -z "$old" ] || { say "Running $live already"; return; }
    say "Starting $live"
    new=$(next_instance "$live")
    start_instance "$new" && say "Started $live" && return
    reason="$live does not start: $reason"
    quote_log "$new"
    [ "$request" = boot ] || stop_instance "$new"
    return 1
}

perform_stop() {
    clean_up || say "Warning $reason"
    say "Stopping $service"
    stop_all_but ''
    wait_until_stopped 1 || fail "an instance cannot be killed"
    "${manager}_close_port"
    say "Stopped"
    say "verdict done"
}

# --- Environment of the app -------------------------------------------------------

env_set() { # NAME
    value=$(cat && echo .)
    value=${value%.}
    value=${value%"
"}
    [ "$(printf %s "$value" | LC_ALL=C tr -d '\000-\010\013-\037\177' | iconv -f UTF-8 -t UTF-8 2>/dev/null && echo .)" = "$value." ] ||
        die "the value has control characters or is not UTF-8"
    write_env "$1" "$1=\"$(printf '%s.' "$value" | sed 's/["\\`$]/\\&/g')"
}

env_unset() { # NAME
    read_env names | grep -qx "$1" || die "$1 is not set"
    write_env "$1" ''
}

# Replaces the file at once. An entry ends with a dot, so that `$( )` keeps line ends.
write_env() { # NAME ENTRY
    [ ! -s env ] || read_env check || die "nothing was changed; mend $dir/env first"
    (
        umask 077
        { { [ ! -s env ] || read_env without "$1"; } && { [ -z "$2" ] || printf '%s"\n' "${2%.}"; }; } >env.new
    ) || die "cannot write $dir/env"
    sync env.new && mv -T env.new env
}

# Reads `env` in the form that systemd and a shell read alike: comments, NAME=plain and
# NAME="quoted", with a backslash before each of " \ ` $ and line ends as they are.
# Prints the names, or the text without one entry; fails if the file has another form.
read_env() { # check | names | without NAME
    awk -v mode="$1" -v name="${2-}" '
        function take(pattern) { return match(text, "^" pattern "\n") }
        { text = text $0 "\n" }
        END {
            while (text != "") {
                entry = ""
                if (take("[ \t]*") || take("#[^\n\\\\]*")) entry = "#"
                else if (take("[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_.,:/@%+=-]*") ||
                    take("[A-Za-z_][A-Za-z0-9_]*=\"([^\"\\\\`$]|\\\\[\"\\\\`$])*\""))
                    entry = substr(text, 1, index(text, "=") - 1)
                else {
                    print "env: neither NAME=plain nor NAME=\"quoted\": " substr(text, 1, index(text, "=")) >"/dev/stderr"
                    exit 1
                }
                if (mode == "names" && entry != "#") print entry
                if (mode == "without" && entry != name) printf "%s", substr(text, 1, RLENGTH)
                text = substr(text, RLENGTH + 1)
            }
        }
    ' env
}

# --- Running the live version once ------------------------------------------------

# A client that may deploy may as well do this: it can deploy a version that does the same.
run_once() { # COUNT BYTES
    live=$(live_version) || die "nothing to run: no version is live yet"
    count=$1 bytes=$2
    set -- "$dir/versions/$service-$live"
    while [ $# -le "$count" ]; do
        argument=$(read_line) || exit 1
        set -- "$@" "$argument"
    done
    exec 3<&0
    receive_input "$bytes"
    "${manager}_run" "$@" <&4 3<&- 4<&- &
    program=$!
    { await_client_gone <&3; "${manager}_end_run" "$program"; } >/dev/null 2>&1 &
    watcher=$!
    status=0
    wait "$program" || status=$?
    kill "$watcher" 2>/dev/null || :
    exit "$status"
}

# Descriptor 4 becomes a file without a name that holds the input. The program starts when
# all of it is here: a program that does not read it could hide that the client is gone.
receive_input() { # BYTES
    exec 4</dev/null
    [ "$1" != 0 ] || return 0
    [ "$1" -le "$MAX_UPLOAD_BYTES" ] || die "the input is larger than $MAX_UPLOAD_BYTES bytes"
    file=$(mktemp "$dir/log/.input.XXXXXX") || die "cannot write $dir/log"
    exec 5>"$file"
    exec 4<"$file"
    rm -f "$file"
    timeout "$((UPLOAD_TIMEOUT_SECS + $1 / MIN_BYTES_PER_SEC))" head -c "$1" <&3 >&5 || received=failed
    exec 5>&-
    size=$(stat -L -c %s /dev/fd/4)
    [ "${received-}$size" = "$1" ] || die "the input did not arrive completely in $dir/log"
}

# Without a byte for so long, the connection was lost, which nobody else tells.
await_client_gone() {
    while [ -n "$(timeout "$CLIENT_TIMEOUT_SECS" head -c 1)" ]; do :; done
}

# --- Instances ------------------------------------------------------------------

# The instances that were started and not yet cleaned up.
instances() {
    for link in run/"$service"-2*; do
        [ ! -h "$link" ] || echo "${link#run/"$service"-}"
    done
}

# Returns one that was never used, because a process may still watch or mark an old one.
# Each leaves its log for as long as its version is kept.
next_instance() { # VERSION
    n=1
    while [ -e "log/$service-$1.$n" ] || [ -h "run/$service-$1.$n" ]; do n=$((n + 1)); done
    echo "$1.$n"
}

# The oldest instance of the live version that was not told to stop. A killed restart can
# leave a second one.
serving_instance() {
    serving=''
    for link in run/"$service-$live".*; do
        i=${link#run/"$service"-}
        [ -h "$link" ] && [ ! -e "run/$i.stopping" ] && "${manager}_is_running" "$i" || continue
        [ -n "$serving" ] && [ "${serving##*.}" -lt "${i##*.}" ] || serving=$i
    done
    echo "$serving"
}

start_instance() { # INSTANCE
    reason="$dir/run or $dir/log could not be written"
    true >>"log/$service-$1" && ln -s "../versions/$service-${1%.*}" "run/$service-$1" &&
        "${manager}_start" "$1"
}

# Marked first, so that a stopping instance is never taken for the one that serves.
stop_instance() { # INSTANCE
    true >"run/$1.stopping" || :
    "${manager}_stop" "$1"
}

stop_all_but() { # INSTANCE or ''
    for i in $(instances); do
        [ "$i" != "$1" ] || continue
        stop_instance "$i"
    done
}

# Waits for the instances that were told to stop, and forgets them. Kills those that take
# longer than the drain, whatever they told their manager.
wait_until_stopped() { # TENTHS OF A SECOND between checks
    tries=$(((drain + 5) * 10 / $1))
    while forget_stopped; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || kill_stopping
        [ "$tries" -gt -20 ] || return 1
        sleep "$(($1 / 10)).$(($1 % 10))"
    done
}

# Succeeds while some of them still run.
forget_stopped() {
    "${manager}_refresh" || return 0
    stopping=''
    for i in $(instances); do
        [ -e "run/$i.stopping" ] || continue
        if "${manager}_is_running" "$i"; then
            stopping="$stopping $i"
        else
            # The link first: then a process that was about to execute it cannot.
            rm -f "run/$service-$i" "run/$i.pid" "run/$i.stopping"
        fi
    done
    [ -n "$stopping" ]
}

kill_stopping() {
    for i in $stopping; do "${manager}_kill" "$i"; done
}

# --- Helpers --------------------------------------------------------------------

# A line that cannot be written, as on a full disk, does not end the script.
say() {
    printf '%s\n' "$*" || :
}

die() {
    echo "$*" >&2
    exit 1
}

# Whether something listens on the service's address. The kernel tells it of a port. A unix
# socket that was shut down looks like any other until somebody connects.
port_is_open() {
    case $listen in
        /*)
            perl -MSocket -e 'alarm 2; socket(my $socket, AF_UNIX, SOCK_STREAM, 0);
                exit !connect($socket, sockaddr_un($ARGV[0]))' "$listen"
            ;;
        *) grep -qs "^ *[0-9]*: [0-9A-F]*:$(printf %04X "${listen##*:}") [0-9A-F]*:0000 0A " /proc/net/tcp /proc/net/tcp6 ;;
    esac
}

# Empty if there is no such process. (`read` skips the NULs.)
process_name() { # PID
    IFS= read -r command <"/proc/$1/cmdline" || echo "$command"
} 2>/dev/null

digit='[0-9]'
hex='[0-9a-f]'
hex12=$hex$hex$hex$hex$hex$hex$hex$hex$hex$hex$hex$hex
date="2${digit}${digit}${digit}[01]${digit}[0-3]$digit"
time="[0-2]${digit}[0-5]${digit}[0-5]$digit"
tab=$(printf '\t')

is_version() {
    # shellcheck disable=SC2254 # these are patterns
    case $1 in
        ${date}T${time}Z-$hex12-$hex12) ;;
        ${date}T${time}Z-$hex12-dirty-$hex12) ;;
        *) return 1 ;;
    esac
}

is_sha256() {
    case $1 in *[!0-9a-f]*) return 1 ;; esac
    [ ${#1} = 64 ]
}

is_user_at_host() {
    case $1 in '' | *[!A-Za-z0-9@._-]*) return 1 ;; esac
    [ ${#1} -le 100 ]
}

is_variable() {
    case $1 in '' | [0-9]* | *[!A-Za-z0-9_]*) return 1 ;; esac
}

is_activation() {
    case $1 in *[!0-9TZ-]* | -* | '') return 1 ;; esac
}
