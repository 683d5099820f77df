# What Hostsnap's hooks share: where an application's data lie, and locks that end by themselves.
# Sourced by the hooks beside it, which say `name` before; no hook itself.
# shellcheck shell=sh

# shellcheck disable=SC2034,SC2154 # each hook says its name, and uses what is said here
state=/run/hostsnap/hooks/$name
# What is still held when this is over lets go by itself. No snapshot takes longer: the host's max_lease.
# shellcheck disable=SC2034
hold_s=120
# hostsnap, which started this hook: without it, there is nobody to release anything.
hostsnap=$PPID

# As hostsnap calls them, so that they are the same when called by hand.
# shellcheck disable=SC2034
self=$(readlink -f "$0")
cd /
umask 077
export LC_ALL=C

say() {
    echo "$name: $*" >&2
}

# The lines of /etc/hostsnap/NAME.conf, if there is one, without comments.
settings() {
    [ ! -e "/etc/hostsnap/$name.conf" ] || sed -e 's/#.*//' -e '/^[[:space:]]*$/d' "/etc/hostsnap/$name.conf"
}

# The Unix sockets that somebody listens on and whose paths match: of all folders, none left behind.
listening_sockets() {
    sed -n 's/^[^:]*: [^ ]* [^ ]* 00010000 [^ ]* [^ ]* *[0-9]* \(\/.*\)$/\1/p' /proc/net/unix | grep -E -e "$1" | sort -u
}

# The file system that a path is on, by the device number of its super block: bind mounts and subvolumes
# have the same.
file_system() {
    findmnt --noheadings --output MAJ:MIN --target "$(readlink -f "$1")" | tr -d ' \n'
}

# Whether the snapshot takes what is in these paths: 0 all of it, 1 nothing, 2 a part, which is worth nothing.
# Called by hand, without HOSTSNAP_MOUNTS, everything is.
is_taken() {
    [ -n "${HOSTSNAP_MOUNTS+set}" ] || return 0
    frozen=$(printf '%s\n' "$HOSTSNAP_MOUNTS" | while IFS= read -r mount; do file_system "$mount"; echo; done)
    inside='' outside=''
    for path; do
        [ -e "$path" ] || continue
        if printf '%s\n' "$frozen" | grep -qxF -e "$(file_system "$path")"; then
            inside="$inside $path"
        else
            outside="$outside $path"
        fi
    done
    [ -n "$outside" ] || return 0
    [ -n "$inside" ] || return 1
    say "only a part would be in the snapshot:$inside. Not$outside. Name them too: hostsnap create PATH…"
    return 2
}

# Seconds since the boot, in $now.
look_at_the_clock() {
    read -r now _ </proc/uptime
    now=${now%%.*}
}

# Returns when the folder is gone (released), or hostsnap, or when the time is over.
wait_while_held() {
    look_at_the_clock
    until_s=$((now + hold_s))
    while [ -e "$1" ] && kill -0 "$hostsnap" 2>/dev/null && [ "$now" -lt "$until_s" ]; do
        sleep 1
        look_at_the_clock
    done
}

# Sessions: a client of a server that holds a lock while it lives. It reads statements from `in`, and what it
# answers is in `out`. Its input ends, and with it the lock, with hostsnap or after $hold_s.

# session_open FOLDER CLIENT…: the client must be what runs in the end (exec), not a child.
session_open() {
    session=$1
    shift
    rm -rf "$session"
    mkdir -p "$session"
    mkfifo "$session/in"
    # There from the beginning: a pipe that nobody has open forgets what was written to it.
    exec 9<>"$session/in"
    : >"$session/out"
    "$@" <"$session/in" >"$session/out" 2>&1 9>&- &
    echo $! >"$session/client"
    # This one keeps it open.
    wait_while_held "$session" </dev/null >/dev/null 2>&1 &
    exec 9>&-
}

# session_ask FOLDER SECONDS WORD STATEMENTS: 0 when all of them are done. Then the line "hostsnap: WORD" has come.
session_ask() {
    look_at_the_clock
    until_s=$((now + $2))
    [ -p "$1/in" ] || return 1
    read -r client <"$1/client"
    printf '%s\n' "$4" "SELECT 'hostsnap: $3';" 1<>"$1/in"
    while :; do
        lives=1
        kill -0 "$client" 2>/dev/null || lives=
        while IFS= read -r line; do
            [ "$line" != "hostsnap: $3" ] || return 0
        done <"$1/out"
        look_at_the_clock
        if [ -z "$lives" ] || [ "$now" -gt "$until_s" ]; then
            say "$(tail -n 5 "$1/out")"
            return 1
        fi
        sleep 0.02
    done
}

# session_close FOLDER STATEMENT: the client ends by this statement.
session_close() {
    [ ! -p "$1/in" ] || printf '%s\n' "$2" 1<>"$1/in"
    rm -rf "$1"
}

# session_kill FOLDER: for one that this very run opened.
session_kill() {
    kill -9 "$(cat "$1/client")" 2>/dev/null
    rm -rf "$1"
}
